"""The defaults of SC-CAM (Chang et al. 2020): its rounds, their clusters, and what follows.

Constants are those of its released code, with classes of tissue in the place of objects. A round is
an argument of the configurations, `round=1`, and part of the name of its run:

    round 0 -> clusters of round 1 -> round 1 -> clusters of round 2 -> round 2 -> ...
"""

from ml_collections import ConfigDict

from configs import base, base_small

LAST_ROUND = 3
_STOPS = (30, 40, 50)  # epochs of 61 after which rounds 0, 1, 2 give their features


def get_round(args: dict[str, str]) -> int:
    """Reads the argument `round`.

    Raises:
      ValueError: it is not a whole number.
    """
    if not args["round"].isdecimal():
        raise ValueError(f"round={args['round']} is not a whole number of 0, 1, 2, ...")
    return int(args["round"])


def name_run(name: str, number: int) -> str:
    """Names the workdir of a round, as `main.py` does where none is given."""
    return f"runs/{name}_round{number}" if number else f"runs/{name}"


def train(dataset: str, name: str, number: int) -> ConfigDict:
    """A round of training.

    Args:
      dataset: shipped description, see `base.phase1`.
      name: of the configuration file, such as "luad_sccam".
      number: of the round; 0 learns the classes alone.
    """
    config = base.phase1(dataset)
    del config.pda
    config.job = "sccam"
    # A run of the job `cluster`, whose clusters are learned as sub-categories; "" = classes alone
    config.clusters = name_run(f"{name}_clusters", number) if number else ""
    if number:
        config.data = base.inherited_data()
    config.epochs = 61  # of the schedule: over these the learning rate decays to 0
    # epochs after which training ends, as the clustering wants features of an earlier epoch; 0 =
    # all. A run can be continued from there with another value.
    config.stop_epoch = _STOPS[number] if number < LAST_ROUND else 0
    config.sub_weight = 5.0  # of the loss of the sub-categories
    config.batch_size = 16
    config.model.mean = (0.485, 0.456, 0.406)  # of ImageNet
    config.model.std = (0.229, 0.224, 0.225)
    config.model.sub_categories = 0  # of each class; 0 = as many as `clusters` has
    config.augment.flip_vertical = 0.0
    config.augment.color = 1.0
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.augment.hue = 0.1
    config.cam = {
        "threshold": 0.25,  # classes with a probability at or under it are left out
        # factors of the patch's size at which maps are computed, which are then added up; sides are
        # rounded to multiples of 8 pixels
        "scales": (1.0, 0.5, 1.5, 2.0),
        "flip": True,  # adds those of the mirror images
        "epsilon": 1e-5,  # added to the maximum by which a map is divided
        # index of a class that is background, in the order of the data set; -1 = none, as tissue
        "background_class": -1,
        "background": 0.15,  # its score at every pixel; others are 0 to 1
        # of what it begins a CRF with: (1 - the largest of the others) to this power; or 32
        "background_power": 4.0,
    }
    return config


def train_small(root: str, patch_size: int, name: str, number: int) -> ConfigDict:
    """A round of training of a small network from random weights, for two CPU cores.

    Args:
      root: of a data set with a description of its own, `dataset.json`.
      patch_size: pixels; 0 = that of its patches.
      name: see `train`.
      number: see `train`.
    """
    config = train("", name, number)
    if not number:
        config.data.root, config.data.patch_size = root, patch_size
    config.data.workers = 0
    config.model.width = 1 / 8
    config.model.dropout_rates = (0.0, 0.2, 0.3)
    # Measured on drawn tissue: AdamW learns in half the epochs of SGD, and with changes of color on
    # every patch so small a network hardly learns at all.
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.head_multiplier = 1.0
    config.augment.color = 0.0
    config.epochs = 12
    config.stop_epoch = (6, 8, 10)[number] if number < LAST_ROUND else 0
    return config


def cluster(name: str, number: int) -> ConfigDict:
    """The clusters that a round learns, of the features of the round before."""
    if number < 1:
        raise ValueError(f"round={number} learns no clusters: give round=1 or more")
    return ConfigDict(
        {
            "job": "cluster",
            "run": name_run(name, number - 1),  # workdir of a round
            "data": base.inherited_data(),
            "k": 10,  # clusters of each class
            "seed": 0,  # of k-means
            "starts": 10,  # of k-means, of which the best is taken
            "max_iterations": 300,  # of k-means
            "batch_size": 20,
        }
    )


def masks(name: str) -> ConfigDict:
    """Pseudo masks of the last round: its own normalized maps, of the classes of each label."""
    config = base.masks(name_run(name, LAST_ROUND))
    config.layers = ("bn7",)
    _set_crf(config.crf)
    return config


def _set_crf(crf: ConfigDict) -> None:
    """Sets the CRF of the released code, for photographs; it stays off, with 0 `iterations`."""
    crf.gaussian_sxy = crf.gaussian_weight = 3.0  # pixels, and a factor
    crf.bilateral_sxy = 80.0  # pixels
    crf.bilateral_srgb = 13.0  # gray values (0-255)
    crf.bilateral_weight = 10.0


def train_phase2(name: str) -> ConfigDict:
    """Phase 2 on these masks: an ablation that nobody has published."""
    config = base.phase2(f"runs/{name}_masks")
    config.layers, config.layer_weights = ("bn7",), (1.0,)
    return config


def train_small_phase2(name: str) -> ConfigDict:
    """Phase 2 on these masks, a small network."""
    config = base_small.phase2(f"runs/{name}_masks", "paper")
    config.layers, config.layer_weights = ("bn7",), (1.0,)
    return config


def evaluate(name: str) -> ConfigDict:
    """Scores of round 0, of the last round, and of phase 2 with the last round as gate."""
    config = base.evaluate(name_run(name, LAST_ROUND), f"runs/{name}_phase2")
    config.runs = (name_run(name, 0),)
    _set_crf(config.crf)
    return config
