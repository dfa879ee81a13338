"""Tissue maps of whole slides, by two trained runs.

    python main.py --config=configs/segment_slides.py --config.slides='slides/*.svs' \\
        --config.phase1=runs/luad_phase1 --config.phase2=runs/luad_phase2 --workdir=runs/maps

Argument: `variant=paper|reference|tuned` (what the gate sets to 0, and `tta`).
"""

from configs import base, base_slides


def get_config(arg=None):
    return base_slides.segment("", "", "", **base.arguments(arg, variant="paper"))
