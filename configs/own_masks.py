"""Pseudo masks for a data set of your own.

python main.py --config=configs/own_masks.py
"""

from configs import base, base_small


def get_config(arg=None):
    return base_small.masks("runs/own_phase1", **base.arguments(arg, variant="paper"))
