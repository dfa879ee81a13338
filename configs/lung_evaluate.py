"""Scores of both phases on the lung test patches.

python main.py --config=configs/lung_evaluate.py --workdir=runs/lung_evaluate
"""

from configs import base


def get_config(arg=None):
    args = base.arguments(arg, variant="paper")
    config = base.evaluate("runs/lung_phase1", "runs/lung_phase2", **args)
    config.data.workers = 0
    return config
