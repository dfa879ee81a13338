"""Clusters for SC-CAM on the patches of `make demo`: sub-categories for round 1, 2 or 3.

python main.py --config=configs/demo_sccam_clusters.py:round=1
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="1"))
    config = base_sccam.cluster("demo_sccam", number)
    config.data.workers, config.batch_size = 0, 16
    return config
