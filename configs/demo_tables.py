"""The tables of the paper on drawn tissue, with networks for a laptop.

python main.py --config=configs/demo_tables.py --workdir=runs/demo_tables
"""

from ml_collections import ConfigDict

from configs import base, base_tables, demo


def _get(step: str, **args) -> ConfigDict:
    """Gives the configuration of a step, of the size of `make demo`."""
    config = base_tables.read_file("demo" if step.startswith("sccam") else "own", step, **args)
    if step in demo.SHRINK:
        demo.SHRINK[step](config)
    if config.data.root:
        config.data.root, config.data.patch_size = "runs/draw/data", 64
    return config


def get_config(arg=None):
    base.arguments(arg)
    draw = base.draw(size=64, train=800, val=60, test=120)
    return base_tables.tables(_get, title="Drawn tissue", first={"draw": draw})
