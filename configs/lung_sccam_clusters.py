"""Clusters for SC-CAM on the lung patches: sub-categories that round 1, 2 or 3 learns.

python main.py --config=configs/lung_sccam_clusters.py:round=1
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="1"))
    config = base_sccam.cluster("lung_sccam", number)
    config.data.workers, config.batch_size = 0, 16
    return config
