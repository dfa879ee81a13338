"""Masks for a second round on LUAD-HistoSeg: what phase 2 predicts for its own training patches.

python main.py --config=configs/luad_relabel.py --workdir=runs/luad_relabel
"""

from configs import base, base_rounds


def get_config(arg=None):
    base.arguments(arg, variant="paper")  # the variants are the same here
    return base_rounds.relabel("runs/luad_phase2")
