"""Phase 2 on the lung patches: a small network from random weights, for two CPU cores.

    python main.py --config=configs/lung_phase2.py --workdir=runs/lung_phase2

With `targets=truth` it learns from the true masks: the fully supervised baseline.
"""

from configs import base, base_small


def get_config(arg=None):
    args = base.arguments(arg, variant="paper", targets="pseudo")
    config = base_small.phase2("runs/lung_masks", args["variant"])
    if args["targets"] == "truth":
        config.masks = "data/lung/train/mask"
        config.layers, config.layer_weights = ("truth",), (1.0,)
        config.data.root, config.data.patch_size = "data/lung", 96
    config.epochs = 6
    return config
