"""Masks for a second round on one's own data: what phase 2 predicts for its training patches.

python main.py --config=configs/own_relabel.py
"""

from configs import base, base_small


def get_config(arg=None):
    base.arguments(arg, variant="paper")  # the variants are the same here
    return base_small.relabel("runs/own_phase2")
