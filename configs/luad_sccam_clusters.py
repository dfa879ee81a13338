"""Clusters for SC-CAM on LUAD-HistoSeg: sub-categories that round 1, 2 or 3 learns.

python main.py --config=configs/luad_sccam_clusters.py:round=1
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="1"))
    return base_sccam.cluster("luad_sccam", number)
