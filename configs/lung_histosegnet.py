"""HistoSegNet on the lung regions: a small network from random weights, for two CPU cores.

python main.py --config=configs/lung_histosegnet.py --workdir=runs/lung_histosegnet
"""

from configs import base, base_histosegnet


def get_config(arg=None):
    base.arguments(arg)
    return base_histosegnet.small("data/lung", patch_size=96)
