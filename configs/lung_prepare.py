"""Patches out of 67 annotated regions of lung adenocarcinoma (data/README.md says which).

    python main.py --config=configs/lung_prepare.py --config.images=data/lung_rois/images \\
        --config.masks=data/lung_rois/masks
"""

from configs import base, base_tools


def get_config(arg=None):
    base.arguments(arg)
    config = base_tools.prepare(
        "data/lung_rois/images", "data/lung_rois/masks", "data/lung", "lung_rois"
    )
    config.codes = {"tumor": (0,), "stroma": (1,), "normal": (2,)}
    config.excluded = (3,)
    config.patch = 96  # of 224 pixels nearly all hold tumor and stroma, which teaches little
    config.stride = 32
    config.resize = 96
    config.shares = (0.6, 0.15, 0.25)
    return config
