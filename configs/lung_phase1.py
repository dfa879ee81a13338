"""Phase 1 on the lung regions: a small network from random weights, for two CPU cores.

python main.py --config=configs/lung_phase1.py --workdir=runs/lung_phase1
"""

from configs import base, base_small


def get_config(arg=None):
    args = base.arguments(arg, variant="paper", dropout="progressive")
    config = base_small.phase1("data/lung", patch_size=96, **args)
    config.epochs = 6
    return config
