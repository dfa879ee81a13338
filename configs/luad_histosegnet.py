"""HistoSegNet on LUAD-HistoSeg, from ImageNet weights of VGG16 where they are given.

    python main.py --config=configs/luad_histosegnet.py --workdir=runs/luad_histosegnet \
        --config.init=weights/vgg16-397923af.pth
"""

from configs import base, base_histosegnet


def get_config(arg=None):
    base.arguments(arg)
    return base_histosegnet.histosegnet("luad_histoseg")
