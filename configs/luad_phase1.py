"""Phase 1 on LUAD-HistoSeg.

    python main.py --config=configs/luad_phase1.py --workdir=runs/luad_phase1

Arguments: `variant=paper|reference|tuned`, `dropout=progressive|constant|off` (ablation of
Table III).
"""

from configs import base


def get_config(arg=None):
    args = base.arguments(arg, variant="paper", dropout="progressive")
    return base.phase1("luad_histoseg", **args)
