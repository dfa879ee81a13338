"""Phase 2 on LUAD-HistoSeg, from the pseudo masks of SC-CAM.

python main.py --config=configs/luad_sccam_phase2.py
"""

from configs import base, base_sccam


def get_config(arg=None):
    base.arguments(arg)
    return base_sccam.train_phase2("luad_sccam")
