"""SC-CAM on BCSS-WSSS: a round of training.

    python main.py --config=configs/bcss_sccam.py:round=0
    python main.py --config=configs/bcss_sccam_clusters.py:round=1
    python main.py --config=configs/bcss_sccam.py:round=1

and so on to round 3. The runs are runs/bcss_sccam, runs/bcss_sccam_clusters_round1 and
runs/bcss_sccam_round1.
"""

from configs import base, base_sccam


def get_config(arg=None):
    number = base_sccam.get_round(base.arguments(arg, round="0"))
    return base_sccam.train("bcss_wsss", "bcss_sccam", number)
