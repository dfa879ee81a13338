"""Phase 1 on a data set of your own: a small network from random weights.

    python main.py --config=configs/own_phase1.py:variant=tuned --config.data.root=data/mine

The folder holds `dataset.json` and the patches, of any size and with any classes; see
docs/your_data.md.
"""

from configs import base, base_small


def get_config(arg=None):
    args = base.arguments(arg, variant="paper", dropout="progressive")
    return base_small.phase1("data/own", patch_size=0, **args)
