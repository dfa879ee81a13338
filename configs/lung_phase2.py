"""Phase 2 on the lung patches: a small network from random weights, for two CPU cores.

    python main.py --config=configs/lung_phase2.py --workdir=runs/lung_phase2

With `targets=truth` it learns from the true masks: the fully supervised baseline.
"""

from configs import base


def get_config(arg=None):
    args = base.arguments(arg, variant="paper", targets="pseudo")
    config = base.phase2("runs/lung_masks", args["variant"])
    config.data.workers = 0
    if args["targets"] == "truth":
        config.masks = "data/lung/train/mask"
        config.layers, config.layer_weights = ("truth",), (1.0,)
        config.data.root, config.data.patch_size = "data/lung", 96
    config.model.width = 1 / 4
    config.model.blocks = (2, 2, 3, 2)
    config.model.dropout_rates = (0.2, 0.2, 0.1)
    config.batch_size = 16
    config.epochs = 6
    config.optimizer.learning_rate = 0.1
    return config
