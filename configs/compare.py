"""Compares this system, tensor by tensor, with the PyTorch reference.

    python main.py --config=configs/compare.py --config.phase=1 --config.weights=phase1.pth \
        --config.images=patches --config.golden=phase1.npz

The networks are those of the released code, at full width and with its settings; the images are
PNGs of one size. Without `golden` the numbers to compare with are computed by PyTorch (pip install
torch); with `record` this system's are written to a golden file.
"""

from configs import base_tools


def get_config():
    return base_tools.compare()
