"""Phase 1 on the lung regions: a small network from random weights, for two CPU cores.

python main.py --config=configs/lung_phase1.py --workdir=runs/lung_phase1
"""

from configs import base


def get_config(arg=None):
    config = base.phase1("", **base.arguments(arg, variant="paper", dropout="progressive"))
    config.data.root = "data/lung"
    config.data.patch_size = 96
    config.data.workers = 0
    config.model.width = 1 / 8
    config.model.dropout_rates = (0.0, 0.2, 0.3)
    config.batch_size = 16
    config.epochs = 6
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.head_multiplier = 1.0
    # From random weights the attention starts once there are class weights worth attending to.
    config.pda.off_epochs = 3
    config.pda.hold_epochs = 4
    config.pda.relu = True
    return config
