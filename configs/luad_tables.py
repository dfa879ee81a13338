r"""The tables of the paper on LUAD-HistoSeg.

    python main.py --config=configs/luad_tables.py:resnet38=<file>,deeplab=<file>,vgg16=<file> \
        --workdir=runs/luad_tables

The files are pretrained weights; without one, a network starts from random weights. `data=<folder>`
is the data set, if it is not where data/README.md has it.
"""

from functools import partial

from configs import base_tables


def get_config(arg=None):
    args = base_tables.arguments(arg)
    config = base_tables.tables(
        partial(base_tables.read_file, "luad"),
        title="LUAD-HistoSeg",
        published="luad_histoseg",
        args=args,
    )
    # There are no true masks of the training patches, which Table II needs.
    config.tables = ("I", "III", "IV")
    config.rows = tuple(row for row in config.rows if row != "supervised")
    return config
