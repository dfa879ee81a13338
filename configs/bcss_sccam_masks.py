"""Pseudo masks of the last round of SC-CAM on BCSS-WSSS.

python main.py --config=configs/bcss_sccam_masks.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    return base_sccam.masks("bcss_sccam")
