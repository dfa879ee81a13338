"""What `variant=tuned` changes in `variant=paper`.

Where a figure comes from is said beside it.
"""

from ml_collections import ConfigDict

TTA = "d4"  # of evaluate and segment


def _tune_training(config: ConfigDict) -> None:
    """Changes both phases: augmentation, averaged weights, and a way back from failures."""
    config.augment.transpose = 0.5  # with both flips, the 8 symmetries of the square
    config.augment.color = 0.5
    config.augment.stain = 0.5
    config.ema.decay = 0.999
    config.optimizer.clip_norm = 1.0
    config.on_divergence = "restore"


def tune_phase1(config: ConfigDict) -> None:
    """Changes phase 1."""
    _tune_training(config)
    # Public logs of the released settings become NaN at .01, and live at .005 to .007.
    config.optimizer.learning_rate = 5e-3
    config.pda.warm_up = 200


def tune_phase2(config: ConfigDict) -> None:
    """Changes phase 2."""
    _tune_training(config)
    config.optimizer.learning_rate = 5e-3  # of the best public results of a plain CNN
    config.select = "smoothed"
