"""HistoSegNet on a data set of your own: a small network from random weights.

    python main.py --config=configs/own_histosegnet.py --config.data.root=data/mine \
        --workdir=runs/own_histosegnet

The folder holds `dataset.json` and square patches, all of one size; see docs/your_data.md. White
background takes part where `dataset.json` says that there is any.
"""

from configs import base, base_histosegnet


def get_config(arg=None):
    base.arguments(arg)
    return base_histosegnet.small("data/own", patch_size=0)
