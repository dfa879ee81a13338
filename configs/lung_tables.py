"""The tables of the paper on the lung patches: small networks, for two CPU cores.

python main.py --config=configs/lung_tables.py --workdir=runs/lung_tables
"""

from functools import partial

from configs import base, base_tables


def get_config(arg=None):
    base.arguments(arg)
    return base_tables.tables(partial(base_tables.read_file, "lung"), title="Lung regions")
