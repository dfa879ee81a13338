"""Phase 1 on a data set of your own: a small network from random weights.

    python main.py --config=configs/own_phase1.py:variant=tuned --config.data.root=data/mine

The folder holds `dataset.json` and square patches, all of one size; see docs/your_data.md.
"""

from configs import base, base_small


def get_config(arg=None):
    args = base.arguments(arg, variant="paper", dropout="progressive")
    config = base_small.phase1("data/own", patch_size=0, **args)
    config.pda.warm_up = 0  # in steps, of which small data sets have few
    return config
