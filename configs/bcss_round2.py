"""Phase 2 once more on BCSS-WSSS, from its own weights, on the masks of bcss_relabel.

    python main.py --config=configs/bcss_round2.py --workdir=runs/bcss_round2

With `--config.init=` it starts as the first round did. A third round is made of other folders:

    python main.py --config=configs/bcss_relabel.py --config.phase2=runs/bcss_round2 \\
        --workdir=runs/bcss_relabel3
    python main.py --config=configs/bcss_round2.py --config.masks=runs/bcss_relabel3 \\
        --config.init=runs/bcss_round2 --workdir=runs/bcss_round3
"""

from configs import base_rounds, bcss_phase2


def get_config(arg=None):
    config = bcss_phase2.get_config(arg)
    return base_rounds.next_round(config, "runs/bcss_relabel", "runs/bcss_phase2")
