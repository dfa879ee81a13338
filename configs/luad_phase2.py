"""Phase 2 on LUAD-HistoSeg, from the pseudo masks.

python main.py --config=configs/luad_phase2.py --workdir=runs/luad_phase2
"""

from configs import base


def get_config(arg=None):
    return base.phase2("runs/luad_masks", **base.arguments(arg, variant="paper"))
