"""Scores of SC-CAM on the lung patches: its first and last round, and phase 2 on its masks.

python main.py --config=configs/lung_sccam_evaluate.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    config = base_sccam.evaluate("lung_sccam")
    config.data.workers = 0
    return config
