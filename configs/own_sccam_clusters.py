"""Clusters for SC-CAM on a data set of your own: sub-categories that round 1, 2 or 3 learns.

python main.py --config=configs/own_sccam_clusters.py:round=1
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="1"))
    config = base_sccam.cluster("own_sccam", number)
    config.data.workers, config.batch_size = 0, 16
    return config
