"""Maps of slides that were corrected in QuPath: areas, ratios and report of the annotations.

    python main.py --config=configs/recount.py --config.annotations=corrected \\
        --config.map=runs/maps --workdir=runs/corrected

`annotations` are what QuPath has exported, GeoJSON named as the slides; `docs/qupath` has scripts.
"""

from configs import base, base_slides


def get_config(arg=None):
    base.arguments(arg)
    return base_slides.recount()
