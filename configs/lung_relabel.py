"""Masks for a second round on the lung patches: what phase 2 predicts for its own training patches.

python main.py --config=configs/lung_relabel.py --workdir=runs/lung_relabel
"""

from configs import base, base_small


def get_config(arg=None):
    base.arguments(arg, variant="paper")  # the variants are the same here
    return base_small.relabel("runs/lung_phase2")
