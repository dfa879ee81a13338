"""Small networks from random weights, which two CPU cores can train."""

from ml_collections import ConfigDict

from configs import base, base_rounds


def phase1(root: str, patch_size: int, **args: str) -> ConfigDict:
    """Phase 1 in an eighth of the width.

    Args:
      root: of a data set with a description of its own, `dataset.json`.
      patch_size: pixels; 0 = that of its patches.
      **args: variant and dropout, see `base.phase1`.
    """
    config = base.phase1("", **args)
    config.data.root, config.data.patch_size = root, patch_size
    config.data.workers = 0
    config.model.width = 1 / 8
    config.model.dropout_rates = (0.0, 0.2, 0.3)
    config.batch_size = 16
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.head_multiplier = 1.0
    # From random weights the attention starts once there are class weights worth attending to.
    config.pda.off_epochs = 3
    config.pda.hold_epochs = 4
    config.pda.relu = True
    return config


def masks(phase1: str, variant: str) -> ConfigDict:
    """Pseudo masks of the run `phase1`."""
    config = base.masks(phase1, variant)
    config.data.workers = 0
    config.batch_size = 16
    return config


def relabel(phase2: str) -> ConfigDict:
    """Masks of what the run `phase2` predicts."""
    config = base_rounds.relabel(phase2)
    config.data.workers = 0
    config.batch_size = 16
    return config


def phase2(masks: str, variant: str) -> ConfigDict:
    """Phase 2 in a quarter of the width, with fewer blocks."""
    config = base.phase2(masks, variant)
    config.data.workers = 0
    config.model.width = 1 / 4
    config.model.blocks = (2, 2, 3, 2)
    config.model.dropout_rates = (0.2, 0.2, 0.1)
    config.batch_size = 16
    config.optimizer.learning_rate = 0.1
    return config


def evaluate(phase1: str, phase2: str, variant: str) -> ConfigDict:
    """Scores of both phases."""
    config = base.evaluate(phase1, phase2, variant)
    config.data.workers = 0
    return config
