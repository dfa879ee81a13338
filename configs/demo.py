"""The whole system on drawn tissue, in minutes on a laptop: `make demo`, or

    python main.py --config=configs/demo.py --workdir=runs/demo

Small networks from random weights: their own learning rates, and attention only once the
classifier has class weights worth attending to.
"""

from configs import base


def get_config(arg=None):
    base.arguments(arg)
    config = base.demo(size=64, train=800, val=60, test=120)

    phase1 = config.jobs.phase1
    phase1.model.width = 1 / 16
    phase1.model.dropout_rates = (0.0, 0.0, 0.2)
    phase1.batch_size = 16
    phase1.epochs = 16
    phase1.optimizer.learning_rate = 0.2
    phase1.optimizer.momentum = 0.9
    phase1.optimizer.head_multiplier = 1.0
    phase1.pda.off_epochs = 8
    phase1.pda.hold_epochs = 9
    phase1.pda.relu = True

    phase2 = config.jobs.phase2
    phase2.model.width = 1 / 8
    phase2.model.blocks = (1, 1, 2, 1)
    phase2.model.dropout_rates = (0.1, 0.1, 0.1)
    phase2.batch_size = 16
    phase2.epochs = 12
    return config
