"""Scores of both phases on the lung test patches.

python main.py --config=configs/lung_evaluate.py --workdir=runs/lung_evaluate
"""

from configs import base, base_small


def get_config(arg=None):
    args = base.arguments(arg, variant="paper")
    return base_small.evaluate("runs/lung_phase1", "runs/lung_phase2", **args)
