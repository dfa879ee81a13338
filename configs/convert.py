"""A file of weights of the PyTorch reference becomes a run that every other job takes.

    python main.py --config=configs/convert.py --config.weights=stage1_checkpoint.pth \
        --workdir=runs/luad_phase1

Arguments: `dataset=luad_histoseg|bcss_wsss|<dataset.json>` (what the classes are),
`variant=reference|paper` (the settings the weights were trained with).
"""

from configs import base, base_tools


def get_config(arg=None):
    return base_tools.convert(**base.arguments(arg, dataset="luad_histoseg", variant="reference"))
