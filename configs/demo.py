"""The whole system on drawn tissue, in minutes on a laptop: `make demo`, or

    python main.py --config=configs/demo.py --workdir=runs/demo

Small networks from random weights: their own learning rates, and attention only once the
classifier has class weights worth attending to.
"""

from ml_collections import ConfigDict

from configs import base


def _shrink_phase1(config: ConfigDict) -> None:
    config.model.width = 1 / 16
    config.model.dropout_rates = (0.0, 0.0, 0.2)
    config.batch_size = 16
    config.epochs = 16
    config.optimizer.learning_rate = 0.2
    config.optimizer.momentum = 0.9
    config.optimizer.head_multiplier = 1.0
    config.pda.off_epochs = 8
    config.pda.hold_epochs = 9
    config.pda.relu = True


def _shrink_phase2(config: ConfigDict) -> None:
    config.model.width = 1 / 8
    config.model.blocks = (1, 1, 2, 1)
    config.model.dropout_rates = (0.1, 0.1, 0.1)
    config.batch_size = 16
    config.epochs = 12


SHRINK = {"phase1": _shrink_phase1, "phase2": _shrink_phase2}


def get_config(arg=None):
    base.arguments(arg)
    config = base.demo(size=64, train=800, val=60, test=120)
    for name, shrink in SHRINK.items():
        shrink(config.jobs[name])
    return config
