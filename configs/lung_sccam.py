"""SC-CAM on the lung patches: a small network from random weights: a round of training.

    python main.py --config=configs/lung_sccam.py:round=0
    python main.py --config=configs/lung_sccam_clusters.py:round=1
    python main.py --config=configs/lung_sccam.py:round=1

and so on to round 3. The runs are runs/lung_sccam, runs/lung_sccam_clusters_round1 and
runs/lung_sccam_round1.
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="0"))
    return base_sccam.train_small("data/lung", 96, "lung_sccam", number)
