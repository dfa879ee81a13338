"""The defaults of HistoSegNet (Chan et al. 2019), one of the methods that the paper compares.

Numbers are those of the released code; the paper that compares gives none of its own.
"""

from ml_collections import ConfigDict

from configs import base


def histosegnet(dataset: str) -> ConfigDict:
    """The patch classifier X1.7, and how its Grad-CAM becomes label maps.

    Args:
      dataset: the name of a shipped description; "" for a data set with its own.
    """
    config = base.training()
    config.job = "histosegnet"
    config.data = base.data(base.DATASETS.get(dataset, ""), dataset, patch_size=224)
    config.batch_size = 16
    config.epochs = 80
    config.drop_last = True  # BatchNorm sees whole batches
    config.select = "last"
    # (): measured on the training patches, one number for all channels
    config.model.mean = config.model.std = ()
    config.model.pooling = "maximum"  # over the whole patch, as in inference; or "mean"
    config.model.dropout_rates = (0.3, 0.4, 0.4, 0.4)  # between the convolutions of each block
    config.loss = {
        # of each class; (): patches / patches that have it, in training
        "class_weights": (),
    }
    optimizer = config.optimizer
    # halved after each quarter of the run: every 20 of 80 epochs
    optimizer.learning_rate, optimizer.decay = 1e-3, "staged"
    optimizer.momentum, optimizer.nesterov = 0.9, True
    # The loss of Keras has 5e-4 * kernel ** 2, whose gradient is twice that times the kernel.
    optimizer.weight_decay = 2 * 5e-4
    optimizer.decay_biases = optimizer.decay_scales = False
    optimizer.head_multiplier = optimizer.bias_multiplier = 1.0
    config.cam = {
        # A class is present from its threshold on. (): where on the validation patches the share
        # of misses equals that of false alarms; 0.5 without such patches.
        "thresholds": (),
    }
    config.background = {
        # of the map of white background; 0: it has no part; -1: 0.75 or 0, as the data set has
        # white background or not
        "weight": -1.0,
        "slope": 4.0,  # of the sigmoid of the mean of RGB (0-255) ...
        "level": 240.0,  # ... which is 1/2 here
        "sigma": 2.0,  # of the blur of it, pixels
        "exceptions": (),  # indices of classes that are bright themselves, such as fat; from 0
    }
    config.crf = base.crf()
    config.crf.iterations = 5
    return config


def small(root: str, patch_size: int) -> ConfigDict:
    """A small network from random weights, which two CPU cores can train.

    Args:
      root: of a data set with a description of its own, `dataset.json`.
      patch_size: pixels; 0 = that of its patches.
    """
    config = histosegnet("")
    config.data.root, config.data.patch_size = root, patch_size
    config.data.workers = 0
    config.model.width = 1 / 8
    config.model.dropout_rates = (0.0, 0.0, 0.2, 0.2)  # the full ones cost .1 of mIoU
    config.optimizer.learning_rate = 0.02  # found on drawn tissue: .01 and .05 are worse
    config.epochs = 16
    return config
