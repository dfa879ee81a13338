"""A trained run as PyTorch checkpoint, safetensors, StableHLO program and Orbax checkpoint.

python main.py --config=configs/export.py --config.run=runs/luad_phase2 --workdir=exported
"""

from configs import base_tools


def get_config():
    return base_tools.export("")
