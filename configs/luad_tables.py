r"""The tables of the paper on LUAD-HistoSeg.

    python main.py --config=configs/luad_tables.py:resnet38=<file>,deeplab=<file>,vgg16=<file> \
        --workdir=runs/luad_tables

The files are pretrained weights; without one, a network starts from random weights.
"""

from functools import partial

from configs import base_tables


def get_config(arg=None):
    weights = base_tables.arguments(arg)
    config = base_tables.tables(
        partial(base_tables.read_file, "luad"),
        title="LUAD-HistoSeg",
        published="luad_histoseg",
        weights=weights,
    )
    # There are no true masks of the training patches.
    config.rows = tuple(row for row in config.rows if row != "supervised")
    return config
