"""Pages in the browser on which people say which tissues a patch contains.

    python main.py --config=configs/label.py --config.data.root=data/mine

docs/labeling.md has the whole way.
"""

from configs import base, base_labels


def get_config(arg=None):
    base.arguments(arg)
    return base_labels.label()
