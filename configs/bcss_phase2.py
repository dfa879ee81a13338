"""Phase 2 on BCSS-WSSS, from the pseudo masks.

python main.py --config=configs/bcss_phase2.py --workdir=runs/bcss_phase2
"""

from configs import base


def get_config(arg=None):
    return base.phase2("runs/bcss_masks", **base.arguments(arg, variant="paper"))
