"""Patches from slides, at random positions on tissue, with quality control: to be labeled.

python main.py --config=configs/sample.py --config.slides='slides/*.svs' --config.out=data/mine
"""

from configs import base, base_slides


def get_config(arg=None):
    base.arguments(arg)
    return base_slides.sample("", "")
