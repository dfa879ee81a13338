"""Labeled patches out of the original BCSS regions (151 images, masks of 22 codes).

    python main.py --config=configs/bcss_prepare.py --config.images=BCSS/rgbs \\
        --config.masks=BCSS/masks --config.out=data/BCSS-WSSS
"""

from configs import base, base_tools
from data.prepare import BCSS_CODES, BCSS_EXCLUDED


def get_config(arg=None):
    base.arguments(arg)
    config = base_tools.prepare("data/BCSS/rgbs", "data/BCSS/masks", "data/BCSS-WSSS", "bcss_wsss")
    config.codes = {name: tuple(codes) for name, codes in BCSS_CODES.items()}
    config.excluded = tuple(BCSS_EXCLUDED)
    return config
