"""SC-CAM on a data set of your own: a small network from random weights: a round of training.

    python main.py --config=configs/own_sccam.py:round=0
    python main.py --config=configs/own_sccam_clusters.py:round=1
    python main.py --config=configs/own_sccam.py:round=1

and so on to round 3. The runs are runs/own_sccam, runs/own_sccam_clusters_round1 and
runs/own_sccam_round1.

Round 0 is told where the data is, `--config.data.root=data/mine`; what follows knows it from there.
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="0"))
    return base_sccam.train_small("data/own", 0, "own_sccam", number)
