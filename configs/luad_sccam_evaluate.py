"""Scores of SC-CAM on LUAD-HistoSeg: its first and last round, and phase 2 on its masks.

python main.py --config=configs/luad_sccam_evaluate.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    return base_sccam.evaluate("luad_sccam")
