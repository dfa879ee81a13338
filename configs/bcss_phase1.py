"""Phase 1 on BCSS-WSSS.

    python main.py --config=configs/bcss_phase1.py --workdir=runs/bcss_phase1

Arguments: `variant=paper|reference|tuned`, `dropout=progressive|constant|off` (ablation of
Table III).
"""

from configs import base


def get_config(arg=None):
    args = base.arguments(arg, variant="paper", dropout="progressive")
    return base.phase1("bcss_wsss", **args)
