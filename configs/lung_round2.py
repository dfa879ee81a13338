"""Phase 2 once more on the lung patches, from its own weights, on the masks of lung_relabel.

    python main.py --config=configs/lung_round2.py --workdir=runs/lung_round2

With `--config.init=` it starts as the first round did. A third round is made of other folders:

    python main.py --config=configs/lung_relabel.py --config.phase2=runs/lung_round2 \\
        --workdir=runs/lung_relabel3
    python main.py --config=configs/lung_round2.py --config.masks=runs/lung_relabel3 \\
        --config.init=runs/lung_round2 --workdir=runs/lung_round3
"""

from configs import base, base_rounds, lung_phase2


def get_config(arg=None):
    base.arguments(arg, variant="paper")  # there are no other targets than those masks
    config = lung_phase2.get_config(arg)
    return base_rounds.next_round(config, "runs/lung_relabel", "runs/lung_phase2")
