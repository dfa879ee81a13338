"""Pseudo masks of the last round of SC-CAM on the lung patches.

python main.py --config=configs/lung_sccam_masks.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    config = base_sccam.masks("lung_sccam")
    config.data.workers, config.batch_size = 0, 16
    return config
