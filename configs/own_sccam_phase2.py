"""Phase 2 on a data set of your own, from the pseudo masks of SC-CAM.

python main.py --config=configs/own_sccam_phase2.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    return base_sccam.train_small_phase2("own_sccam")
