"""Phase 2 once more on LUAD-HistoSeg, from its own weights, on the masks of luad_relabel.

    python main.py --config=configs/luad_round2.py --workdir=runs/luad_round2

With `--config.init=` it starts as the first round did. A third round is made of other folders:

    python main.py --config=configs/luad_relabel.py --config.phase2=runs/luad_round2 \\
        --workdir=runs/luad_relabel3
    python main.py --config=configs/luad_round2.py --config.masks=runs/luad_relabel3 \\
        --config.init=runs/luad_round2 --workdir=runs/luad_round3
"""

from configs import base_rounds, luad_phase2


def get_config(arg=None):
    config = luad_phase2.get_config(arg)
    return base_rounds.next_round(config, "runs/luad_relabel", "runs/luad_phase2")
