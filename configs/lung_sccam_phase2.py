"""Phase 2 on the lung patches, from the pseudo masks of SC-CAM.

python main.py --config=configs/lung_sccam_phase2.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    config = base_sccam.train_small_phase2("lung_sccam")
    config.epochs = 6
    return config
