"""Phase 2 on BCSS-WSSS, from the pseudo masks of SC-CAM.

python main.py --config=configs/bcss_sccam_phase2.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    return base_sccam.train_phase2("bcss_sccam")
