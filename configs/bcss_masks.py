"""Pseudo masks for the training patches of BCSS-WSSS, from the classifier of phase 1.

python main.py --config=configs/bcss_masks.py --workdir=runs/bcss_masks
"""

from configs import base


def get_config(arg=None):
    return base.masks("runs/bcss_phase1", **base.arguments(arg, variant="paper"))
