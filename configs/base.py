"""The defaults all configurations start from, and the variants of the method.

Every constant of the method is a field here. Where the paper (Han et al. 2022) and its released
code differ, `variant=paper` follows the text and `variant=reference` the code; where the paper is
silent both follow the code. `variant=tuned` is the text with the changes of `base_tuned`.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs import base_tuned

VARIANTS = ("paper", "reference", "tuned")
DATASETS = {  # name -> the folder it is looked for in
    "luad_histoseg": "data/LUAD-HistoSeg",
    "bcss_wsss": "data/BCSS-WSSS",
}


def arguments(text: str | None, **defaults: str) -> dict[str, str]:
    """Reads the part after the colon of `--config=configs/luad_phase1.py:variant=reference`.

    Args:
      text: `key=value` pairs separated by commas, or None.
      **defaults: the keys that exist, with their defaults.

    Raises:
      ValueError: a key that does not exist, or a variant that does not.
    """
    values = dict(defaults)
    for pair in filter(None, (text or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in values:
            known = ", ".join(f"{k}=..." for k in defaults)
            raise ValueError(f"config argument {pair!r} is not known; there is: {known}")
        values[key] = value
    if values.get("variant", "paper") not in VARIANTS:
        raise ValueError(f"variant={values['variant']} is not one of {', '.join(VARIANTS)}")
    return values


def data(root: str, dataset: str, patch_size: int) -> ConfigDict:
    """The fields `data` of a job."""
    return ConfigDict(
        {
            "root": root,  # folder of the data set; "" = as in the earlier run
            "dataset": dataset,  # shipped description or dataset.json; "" = <root>/dataset.json
            # further folders of labeled patches, whose `train` is trained on, too, such as
            # corrections of maps; () = as in the earlier run
            "more": (),
            "source": "folder",  # "tfds": ArrayRecord, built once beside the folder
            # pixels, height and width; 0 = as in the earlier run, or else as the first patch
            "patch_size": patch_size,
            "resize": False,  # True: brings patches of other sizes to patch_size (WSSS4LUAD)
            "workers": 2,  # processes that decode patches; 0 = threads of this process
        }
    )


def inherited_data() -> ConfigDict:
    """The fields `data` of a job after training, which takes them from the run it is given."""
    return data(root="", dataset="", patch_size=0)


def crf() -> ConfigDict:
    """The dense CRF on class probabilities (Krähenbühl & Koltun 2011), off.

    The numbers are those of HistoSegNet (Chan et al. 2019) for tissue. SC-CAM (Chang et al. 2020),
    for photographs: 10 iterations, Gaussian 3 / 3, bilateral 80 / 13 / 10.
    """
    return ConfigDict(
        {
            "iterations": 0,  # of mean field; 0 = off; HistoSegNet 5
            "gaussian_sxy": 3.0,  # deviation of the kernel on positions, pixels
            "gaussian_weight": 30.0,
            "bilateral_sxy": 10.0,  # deviations of the kernel on positions, pixels ...
            "bilateral_srgb": 20.0,  # ... and colors, gray values (0-255)
            "bilateral_weight": 50.0,
            # window of the bilateral kernel, in bilateral_sxy: beyond 3 it has 1 % of its weight
            "truncation": 3.0,
            # 1: all pixels; n: one for n x n of them but for neighbors, about n^2 times faster
            "stride": 1,
            "clip": 1e-5,  # the least probability that a possible class begins with; HistoSegNet
        }
    )


def training() -> ConfigDict:
    """The fields that the training of every method has."""
    return ConfigDict(
        {
            "seed": 0,
            # file or run to take weights from (PyTorch, safetensors, MXNet); "" = random weights
            "init": "",
            "strict": True,  # all of them must fit; False leaves what does not at random values
            # what is computed in; parameters stay float32. "tensorfloat32": float32, of which
            # accelerators round what convolutions multiply to TF32; "bfloat16"
            "precision": "float32",
            "convolutions": {  # the fastest ways to compute them on this device, as measured
                # by `python -m benchmarks.convolutions --tune`; "" or no such file: by rules
                "table": "runs/convolutions.json",
                "ways": (),  # () = from the table; in the run's config.json there are those taken
            },
            "batch_size": 20,  # over all devices
            # For devices with little memory; neither changes the result beyond rounding. Parts that
            # each device computes its share of a batch in (where BatchNorm is frozen) ...
            "accumulate": 1,
            # ... and, instead of keeping what the backward pass needs, computing it twice.
            "rematerialize": False,
            "log_every": 10,  # steps
            "checkpoint_every": 500,  # steps, and at the end of each epoch
            # decay per step of the moving average of the weights, which is validated, saved and
            # used by later jobs; 0 = the weights themselves. At most (1 + n) / (10 + n) in step n:
            # below 9,000 steps .999 averages about the last ninth of those taken.
            "ema": {"decay": 0.0},
            # when training fails (a loss that is not finite, a collapsed attention): "restore" goes
            # back to the checkpoint before it and halves the learning rate, at most three times
            "on_divergence": "stop",
            "augment": {
                "flip_horizontal": 0.5,  # probability
                "flip_vertical": 0.5,
                "blur": 0.0,  # probability of PIL's Gaussian blur
                "blur_radius": 1.0,  # its standard deviation is uniform in [0, this), pixels
                # Not in the paper, off unless said. With both flips at 0.5, a transposition at 0.5
                # gives the 8 symmetries of the square.
                "transpose": 0.0,  # probability
                "affine": 0.0,  # probability of a rotation and scale, in one resampling
                "rotation": 180.0,  # degrees: the angle is uniform in +- this
                "scale": (0.8, 1.25),  # from, to, uniform in the logarithm; over 1 enlarges
                "color": 0.0,  # probability of a change of color, as in torchvision
                "brightness": 0.2,  # the factors are uniform in 1 +- these, which are those of ...
                "contrast": 0.2,
                "saturation": 0.2,
                "hue": 0.1,  # ... a public fork of the released code; share of the color circle
                "stain": 0.0,  # probability of a change of stains: amount * factor + offset
                "stain_factor": 0.05,  # uniform in 1 +- this (Tellez et al. 2019)
                "stain_offset": 0.05,  # uniform in +- this, optical density
            },
            "model": {
                "width": 1.0,  # multiplies every channel count
                "mean": (0.0, 0.0, 0.0),  # of x / 255: the network sees (x / 255 - mean) / std
                "std": (1.0, 1.0, 1.0),
            },
            "optimizer": {
                "kind": "sgd",  # "adamw": decay of the weights apart (Loshchilov & Hutter 2019)
                # batch size that learning_rate is meant for: others scale it; 0 = it stays
                "base_batch_size": 0,
                "nesterov": False,  # of sgd: its momentum looks ahead
                # of the learning rate, per step: "polynomial", "cosine", "staged" or "triangular"
                "decay": "polynomial",
                "power": 0.9,  # of the polynomial
                "stages": 4,  # equal parts of the run; after each, the rate is multiplied by ...
                "stage_factor": 0.5,  # ... this ("staged", "triangular")
                "half_cycles": 16,  # lines up or down in the run, from the rate ...
                "peak_factor": 20.0,  # ... to so many times the rate ("triangular")
                "warm_up": 0,  # steps in which the learning rate rises in a line; 0 = none
                "weight_decay": 5e-4,
                "decay_scales": True,  # of BatchNorm; biases: decay_biases
                "betas": (0.9, 0.999),  # of adamw, in the place of momentum; defaults of PyTorch
                "epsilon": 1e-8,  # of adamw
                "clip_norm": 0.0,  # largest norm of the gradient of all parameters; 0 = any
            },
        }
    )


def phase1(dataset: str, variant: str = "paper", dropout: str = "progressive") -> ConfigDict:
    """Phase 1: the patch classifier, ResNet38 with Progressive Dropout Attention."""
    reference = variant == "reference"
    config = training()
    config.job = "phase1"
    config.data = data(DATASETS.get(dataset, ""), dataset, patch_size=224)
    config.epochs = 40 if dataset == "bcss_wsss" and not reference else 20
    config.drop_last = True
    config.select = "last"
    config.cam = {  # phase 1 as a segmentation, by its class activation maps
        "threshold": 0.25,  # classes with a probability at or under it are left out
        "relu": reference,  # negative activations become 0
    }
    # "frozen": running statistics and affine stay (needs pretrained weights); "auto": frozen with
    # `init`, trained from random weights.
    config.model.batch_norm = "auto"
    config.model.frozen_blocks = ("conv1a", "b2", "b2_1", "b2_2")  # with `init` only
    config.model.dropout_rates = (0.3, 0.5, 0.5)  # channels, in b6, in b7, before pooling
    config.optimizer.learning_rate = 1e-2
    config.optimizer.momentum = 5e-4  # the code passes its weight decay in this position
    config.optimizer.head_multiplier = 10.0  # fc8's learning rate
    config.optimizer.bias_multiplier = 2.0
    config.optimizer.decay_biases = False
    config.pda = {
        "schedule": dropout,  # "progressive", "constant" or "off": the rows of the ablation
        "decay": 0.98 if reference else 0.985,  # Eq. 11
        "floor": 0.65,
        "clip": not reference,  # else mu stops at the first value not above the floor
        "hold_epochs": 1 if reference else 3,  # mu = 1 in these; it decays from then on
        "off_epochs": 3 if reference else 0,  # no attention at all in these
        "constant": 0.7,  # mu of the constant schedule
        "relu": reference,  # of the class activation maps (Eq. 7 has none)
        "divisor": 4 if reference else 0,  # of the sum over classes; 0 = their number
        "normalize": False,  # True: each image's attention is divided by its largest absolute value
        "warm_up": 0,  # steps over which the attention goes from 1 to its value; 0 = at once
        # steps in a row with a loss of ln 2 or without a class map above 0, after which it counts
        # as collapsed; 0: never
        "collapse_steps": 50,
    }
    if variant == "tuned":
        base_tuned.tune_phase1(config)
    return config


def masks(phase1: str, variant: str = "paper") -> ConfigDict:
    """Pseudo masks: Grad-CAM of three layers of the classifier of the run `phase1`."""
    return ConfigDict(
        {
            "job": "masks",
            "phase1": phase1,
            "data": inherited_data(),
            "layers": layers(variant),
            # classes that a patch has not: "excluded" never win, "zero" win ties at the minimum
            "absent": "zero" if variant == "reference" else "excluded",
            "white_threshold": 200,  # gray value (0-255) above which a pixel is background ...
            "white_min_area": 50,  # ... in 4-connected areas of at least so many pixels
            # factors of the patch's size at which maps are computed, which are then averaged, such
            # as (0.5, 1.0, 1.5, 2.0) of AffinityNet; sides are rounded to multiples of 8 pixels
            "scales": (1.0,),
            # test-time averaging of the maps over views of each patch: "none", "flips" or "d4"
            "tta": "none",
            "crf": crf(),  # of the maps, before the classes compete
            "batch_size": 20,
            "palette": "dataset",  # colors of the contact sheet; "colorblind": see evaluate
            "sheet_patches": 8,  # rows of the contact sheet
            "seed": 0,  # of the sample on it
        }
    )


def layers(variant: str) -> tuple[str, str, str]:
    """The layers of the multi-layer masks, lowest first."""
    return ("b4_5" if variant == "reference" else "b4_3", "b5_2", "bn7")


def phase2(masks: str, variant: str = "paper") -> ConfigDict:
    """Phase 2: DeepLabV3+ on the pseudo masks of the run (or folder) `masks`."""
    reference = variant == "reference"
    config = training()
    config.job = "phase2"
    config.masks = masks
    config.data = inherited_data()
    config.epochs = 30 if reference else 20
    config.drop_last = False
    # "best" by the mIoU of the validation patches, without gate, "smoothed" by its mean over the
    # epoch and the two before, or "last"
    config.select = "best"
    config.layers = layers(variant)
    config.layer_weights = (0.2, 0.2, 0.6)
    config.loss = {
        # "logit": white pixels stay in the mean, with a further logit of `white_logit` where the
        # mask of the last of `layers` is white and 0 elsewhere
        "white": "logit" if reference else "excluded",
        "white_logit": 100.0,
        "divide_by_batch": reference,  # each layer's loss once more by the batch size
        # of a pixel, p being the probability of its mask's class: "cross_entropy", -log p, or
        # "symmetric", a * -log p + b * (1 - p) with (a, b) = `symmetric_weights`: alpha and
        # beta * -log 1e-4 of the code of Wang et al. 2019 for CIFAR-10
        "kind": "cross_entropy",
        "symmetric_weights": (0.1, 9.2),
        # weight of the Dice loss of each image (Sudre et al. 2017), added; `white` must be
        # "excluded"
        "dice": 0.0,
    }
    config.augment.flip_vertical = 0.0 if reference else 0.5
    config.augment.blur = 0.5
    # Shares of the examples that patches composed of those with a single class replace (PistoSeg);
    # the tissue in their parts is scaled by `augment.scale`.
    config.augment.mosaic = 0.0  # 2 x 2 quarters
    config.augment.mosaic_split = 0.2  # least share of a side on each side of where it is split
    config.augment.paste = 0.0  # what is inside a closed curve, on a patch of another class
    config.augment.paste_radius = (0.15, 0.35)  # its mean radius, from, to: shares of the side
    if not reference:  # "normalization": the usual ImageNet statistics
        config.model.mean = (0.485, 0.456, 0.406)
        config.model.std = (0.229, 0.224, 0.225)
    config.model.blocks = (3, 4, 23, 3)  # of the four stages: ResNet-101
    config.model.dropout_rates = (0.5, 0.5, 0.1)  # ASPP, decoder, decoder
    config.optimizer.learning_rate = 1e-2 if reference else 7e-2
    config.optimizer.momentum = 0.9
    config.optimizer.head_multiplier = 10.0 if reference else 1.0  # ASPP and decoder
    config.optimizer.bias_multiplier = 1.0
    config.optimizer.decay_biases = True
    if variant == "tuned":
        base_tuned.tune_phase2(config)
    return config


def evaluate(phase1: str, phase2: str, variant: str = "paper") -> ConfigDict:
    """Scores of phase 1, phase 2, and phase 2 with the classification gate."""
    return ConfigDict(
        {
            "job": "evaluate",
            "phase1": phase1,
            "phase2": phase2,
            "runs": (),  # further runs to score, of any method, each a row of the table
            "data": inherited_data(),
            "split": "test",
            "gate": {
                # what a closed class loses: its "probabilities" (Eq. 14) or "logits" become 0
                "mode": "logits" if variant == "reference" else "probabilities",
                "threshold": 0.1,  # a class is closed at or under this probability in phase 1
            },
            "batch_size": 20,
            # what the networks compute in: "float32", "tensorfloat32" or "bfloat16"; "" = what they
            # were trained in
            "precision": "",
            # test-time averaging of probabilities (of phase 1: of activation maps, too) over views
            # of each patch: "none" (1), "flips" (4), or "d4" (8: also turned by 90 degrees)
            "tta": base_tuned.TTA if variant == "tuned" else "none",
            "crf": crf(),  # of the probabilities of all rows, before the classes compete
            # colors of the pictures: the data set's, or "colorblind": told apart by all eyes
            "palette": "dataset",
            "sheet_patches": 8,  # rows of the sheets of best and worst patches
        }
    )


def repeat(steps: tuple[str, ...], variants: Mapping[str, Mapping[str, ConfigDict]]) -> ConfigDict:
    """Chains of jobs, one for each variant, trained and scored with several seeds."""
    return ConfigDict(
        {
            "job": "repeat",
            "steps": steps,  # in their order; they name each other's runs as runs/<step>
            "variants": tuple(variants),  # the others are compared with the first
            "seeds": (0, 1, 2),
            "bootstrap": {  # intervals of the differences between variants
                # Regular expression of a patch's name whose first group is the region it was cut
                # from: patches of a region are resampled together. This one is of `prepare`;
                # "" = each patch by itself.
                "region": r"(.+)_x\d{5,}_y\d{5,}",
                "resamples": 2000,  # Efron and Tibshirani 1993: 1,000 or more for percentiles
                "confidence": 0.95,
                "seed": 0,  # of the draws
            },
            "jobs": variants,
        }
    )


def draw(size: int, train: int, val: int, test: int) -> ConfigDict:
    """Drawn tissue, whose truth is known at every pixel."""
    return ConfigDict(
        {
            "job": "draw",
            "size": size,  # pixels of a patch
            "train": train,  # patches
            "val": val,
            "test": test,
            "data_seed": 0,  # of what is drawn
        }
    )


def demo(size: int, train: int, val: int, test: int) -> ConfigDict:
    """Drawn tissue and the four jobs on it, each with its fields under `jobs`.

    Data and earlier runs of the jobs are set by the demo itself.
    """
    config = ConfigDict(
        {
            "job": "demo",
            "size": size,  # pixels of a patch
            "train": train,  # patches
            "val": val,
            "test": test,
            "seed": 0,
            "jobs": {
                "phase1": phase1(""),
                "masks": masks("demo"),
                "phase2": phase2("demo"),
                "evaluate": evaluate("demo", "demo"),
            },
        }
    )
    for job in config.jobs.values():
        job.data.workers = 0  # so small a run is over before processes have started
    return config
