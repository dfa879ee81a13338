"""Scores of both phases on the test patches of LUAD-HistoSeg.

python main.py --config=configs/luad_evaluate.py --workdir=runs/luad_evaluate
"""

from configs import base


def get_config(arg=None):
    args = base.arguments(arg, variant="paper")
    return base.evaluate("runs/luad_phase1", "runs/luad_phase2", **args)
