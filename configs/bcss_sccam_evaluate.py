"""Scores of SC-CAM on BCSS-WSSS: its first and last round, and phase 2 on its masks.

python main.py --config=configs/bcss_sccam_evaluate.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    return base_sccam.evaluate("bcss_sccam")
