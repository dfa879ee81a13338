"""A drawn data set: tissue of four classes whose truth is known at every pixel.

python main.py --config=configs/draw.py --workdir=runs/drawn

The data set is then runs/drawn/data.
"""

from configs import base


def get_config(arg=None):
    base.arguments(arg)
    return base.draw(size=64, train=800, val=60, test=120)
