"""Scores of both phases on the test patches of BCSS-WSSS.

python main.py --config=configs/bcss_evaluate.py --workdir=runs/bcss_evaluate
"""

from configs import base


def get_config(arg=None):
    args = base.arguments(arg, variant="paper")
    return base.evaluate("runs/bcss_phase1", "runs/bcss_phase2", **args)
