"""Pseudo masks for the training patches of LUAD-HistoSeg, from the classifier of phase 1.

python main.py --config=configs/luad_masks.py --workdir=runs/luad_masks
"""

from configs import base


def get_config(arg=None):
    return base.masks("runs/luad_phase1", **base.arguments(arg, variant="paper"))
