"""Tissue maps in the browser, from the whole slide down to single cells.

    python main.py --config=configs/view.py --config.maps=runs/maps

docs/viewer.md says what the pages can do.
"""

from configs import base, base_slides


def get_config(arg=None):
    base.arguments(arg)
    return base_slides.view("")
