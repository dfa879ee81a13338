"""SC-CAM on the patches that `make demo` has drawn: a round of training of a smaller network.

    python main.py --config=configs/demo_sccam.py:round=0
    python main.py --config=configs/demo_sccam_clusters.py:round=1
    python main.py --config=configs/demo_sccam.py:round=1

and so on to round 3. The runs are runs/demo_sccam, runs/demo_sccam_clusters_round1 and
runs/demo_sccam_round1.
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="0"))
    config = base_sccam.train_small("runs/demo/data", 64, "demo_sccam", number)
    config.model.width = 1 / 16
    config.model.dropout_rates = (0.0, 0.0, 0.2)
    return config
