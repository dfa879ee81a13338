"""Phase 2 once more on one's own data, from its own weights, on the masks of own_relabel.

python main.py --config=configs/own_round2.py:variant=tuned
"""

from configs import base_rounds, own_phase2


def get_config(arg=None):
    config = own_phase2.get_config(arg)
    return base_rounds.next_round(config, "runs/own_relabel", "runs/own_phase2")
