"""Masks for a second round on BCSS-WSSS: what phase 2 predicts for its own training patches.

python main.py --config=configs/bcss_relabel.py --workdir=runs/bcss_relabel
"""

from configs import base, base_rounds


def get_config(arg=None):
    base.arguments(arg, variant="paper")  # the variants are the same here
    return base_rounds.relabel("runs/bcss_phase2")
