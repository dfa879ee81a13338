"""Whether everything is installed and works, and what segmenting a slide would take.

    python main.py --config=configs/doctor.py
    python main.py --config=configs/doctor.py --config.slide=slide.svs --config.mpp=0.5 \\
        --config.phase1=runs/luad_phase1 --config.phase2=runs/luad_phase2
"""

from configs import base, base_slides


def get_config(arg=None):
    return base_slides.doctor(**base.arguments(arg, variant="paper"))
