"""Scores of both phases on the test patches of a data set of your own.

python main.py --config=configs/own_evaluate.py:variant=tuned
"""

from configs import base, base_small


def get_config(arg=None):
    args = base.arguments(arg, variant="paper")
    return base_small.evaluate("runs/own_phase1", "runs/own_phase2", **args)
