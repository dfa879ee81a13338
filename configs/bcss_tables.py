r"""The tables of the paper on BCSS-WSSS.

    python main.py --config=configs/bcss_tables.py:resnet38=<file>,deeplab=<file>,vgg16=<file> \
        --workdir=runs/bcss_tables

The files are pretrained weights; without one, a network starts from random weights. `data=<folder>`
is the data set, if it is not where data/README.md has it.
"""

from functools import partial

from configs import base_tables


def get_config(arg=None):
    args = base_tables.arguments(arg)
    config = base_tables.tables(
        partial(base_tables.read_file, "bcss"),
        title="BCSS-WSSS",
        published="bcss_wsss",
        args=args,
    )
    # Its training patches come without true masks; with them in train/mask, name it in `rows`.
    config.rows = tuple(row for row in config.rows if row != "supervised")
    return config
