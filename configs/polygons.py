"""Shapes drawn in labelme or QuPath as masks, and masks as shapes to correct.

    python main.py --config=configs/polygons.py --config.files=drawn \\
        --config.dataset=data/mine/dataset.json --workdir=runs/drawn

The masks are then runs/drawn/masks. The other way: `--config.to=labelme` or `--config.to=geojson`.
"""

from configs import base, base_tools


def get_config(arg=None):
    base.arguments(arg)
    return base_tools.polygons()
