"""Phase 2 on a data set of your own, from the pseudo masks: a small network from random weights.

python main.py --config=configs/own_phase2.py:variant=tuned
"""

from configs import base, base_small


def get_config(arg=None):
    return base_small.phase2("runs/own_masks", **base.arguments(arg, variant="paper"))
