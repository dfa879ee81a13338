"""The paper's annotation study (Table V): minutes for 100 patches, and consensus.

    python main.py --config=configs/study.py --config.labels=data/mine/labels.sqlite \\
        --config.drawings=data/drawings --workdir=runs/study
"""

from configs import base, base_labels


def get_config(arg=None):
    base.arguments(arg)
    return base_labels.study()
