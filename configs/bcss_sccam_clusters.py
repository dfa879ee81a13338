"""Clusters for SC-CAM on BCSS-WSSS: sub-categories that round 1, 2 or 3 learns.

python main.py --config=configs/bcss_sccam_clusters.py:round=1
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="1"))
    return base_sccam.cluster("bcss_sccam", number)
