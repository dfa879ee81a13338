"""Scores of SC-CAM on a data set of your own: its first and last round, and phase 2 on its masks.

python main.py --config=configs/own_sccam_evaluate.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    config = base_sccam.evaluate("own_sccam")
    config.data.workers = 0
    return config
