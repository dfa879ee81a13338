"""Pseudo masks of the last round of SC-CAM on LUAD-HistoSeg.

python main.py --config=configs/luad_sccam_masks.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    return base_sccam.masks("luad_sccam")
