"""The tables of the paper on LUAD-HistoSeg.

python main.py --config=configs/luad_tables.py --workdir=runs/luad_tables
"""

from functools import partial

from configs import base, base_tables


def get_config(arg=None):
    base.arguments(arg)
    config = base_tables.tables(
        partial(base_tables.read_file, "luad"), title="LUAD-HistoSeg", published="luad_histoseg"
    )
    # There are no true masks of the training patches.
    config.rows = tuple(row for row in config.rows if row != "supervised")
    return config
