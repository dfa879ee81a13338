"""HistoSegNet on BCSS-WSSS, from ImageNet weights of VGG16 where they are given.

    python main.py --config=configs/bcss_histosegnet.py --workdir=runs/bcss_histosegnet \
        --config.init=weights/vgg16-397923af.pth
"""

from configs import base, base_histosegnet


def get_config(arg=None):
    base.arguments(arg)
    return base_histosegnet.histosegnet("bcss_wsss")
