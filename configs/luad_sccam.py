"""SC-CAM on LUAD-HistoSeg: a round of training.

    python main.py --config=configs/luad_sccam.py:round=0
    python main.py --config=configs/luad_sccam_clusters.py:round=1
    python main.py --config=configs/luad_sccam.py:round=1

and so on to round 3. The runs are runs/luad_sccam, runs/luad_sccam_clusters_round1 and
runs/luad_sccam_round1.
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="0"))
    return base_sccam.train("luad_histoseg", "luad_sccam", number)
