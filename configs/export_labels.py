"""The data set that follows from what people have labeled.

python main.py --config=configs/export_labels.py --config.data.root=data/mine
"""

from configs import base, base_labels


def get_config(arg=None):
    base.arguments(arg)
    return base_labels.export_labels()
