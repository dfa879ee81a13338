"""The tables of the paper on BCSS-WSSS.

python main.py --config=configs/bcss_tables.py --workdir=runs/bcss_tables
"""

from functools import partial

from configs import base, base_tables


def get_config(arg=None):
    base.arguments(arg)
    config = base_tables.tables(
        partial(base_tables.read_file, "bcss"), title="BCSS-WSSS", published="bcss_wsss"
    )
    # Its training patches come without true masks; with them in train/mask, name it in `rows`.
    config.rows = tuple(row for row in config.rows if row != "supervised")
    return config
