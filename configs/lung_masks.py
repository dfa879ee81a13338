"""Pseudo masks for the lung patches.

python main.py --config=configs/lung_masks.py --workdir=runs/lung_masks
"""

from configs import base


def get_config(arg=None):
    config = base.masks("runs/lung_phase1", **base.arguments(arg, variant="paper"))
    config.data.workers = 0
    config.batch_size = 16
    return config
