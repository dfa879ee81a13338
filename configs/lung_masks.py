"""Pseudo masks for the lung patches.

python main.py --config=configs/lung_masks.py --workdir=runs/lung_masks
"""

from configs import base, base_small


def get_config(arg=None):
    return base_small.masks("runs/lung_phase1", **base.arguments(arg, variant="paper"))
