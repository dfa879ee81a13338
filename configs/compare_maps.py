"""Two maps of the same slides: how far they agree, and where they differ.

    python main.py --config=configs/compare_maps.py \\
        --config.maps="('runs/maps_a','runs/maps_b')" --workdir=runs/difference

The maps are workdirs of the job `segment`, or folders of single slides in them.
"""

from configs import base, base_slides


def get_config(arg=None):
    base.arguments(arg)
    return base_slides.compare_maps()
