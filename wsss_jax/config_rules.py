"""Which values the fields of a configuration may have.

`configs/base*.py` hold the defaults. What is possible is said by the `FIELDS` of each job and each
method, which are made of the rules here, so that a misspelled or impossible field is refused before
any work begins.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from wsss_jax.models.lowering import parse_choice

# Bounds: a number beyond them is a slip of the keyboard and would take all memory, or crash.
_LONGEST_TEXT = 4096  # as the longest path of Linux
_LONGEST_SEQUENCE = 256
MOST_PIXELS = 8192  # of a side of what a network sees at once
MOST_EXAMPLES = 4096  # of a batch
MOST_EPOCHS = 10_000
MOST_STEPS = 10**9
LARGEST = 1e6  # of factors, rates and statistics
LARGEST_AREA = 1e12  # square micrometers: a square meter


NOTHING = object()


class Rule(NamedTuple):
    """Which values a field may have.

    Attributes:
      allows: the test.
      text: its description for the error message.
      before: the value that reproduces what versions without this field did; `NOTHING` for fields
        that were there from the beginning.
    """

    allows: Callable[[Any], bool]
    text: str
    before: Any = NOTHING


def added(rule: Rule, before: Any) -> Rule:
    """Returns the rule of a field that came later; see `Rule.before`."""
    return rule._replace(before=before)


def one_of(*choices: str) -> Rule:
    """Allows these texts only."""
    return Rule(lambda v: v in choices, "one of " + ", ".join(map(repr, choices)))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def integer(least: int, most: int) -> Rule:
    return Rule(
        lambda v: _is_int(v) and least <= v <= most,
        f"an integer of at least {least}, at most {most}",
    )


def number(low: float, high: float, *, open_low: bool = False) -> Rule:
    def allows(v: Any) -> bool:
        if not (_is_int(v) or isinstance(v, float)):
            return False
        return (low < v if open_low else low <= v) and v <= high

    bounds = f"{'over' if open_low else 'at least'} {low:g}"
    return Rule(allows, f"a number {bounds}, at most {high:g}")


def sequence(item: Rule, length: int | None = None) -> Rule:
    def allows(v: Any) -> bool:
        return (
            isinstance(v, list | tuple)
            and (len(v) <= _LONGEST_SEQUENCE if length is None else len(v) == length)
            and all(item.allows(x) for x in v)
        )

    count = (
        f"a sequence of at most {_LONGEST_SEQUENCE}"
        if length is None
        else f"a sequence of {length}"
    )
    return Rule(allows, f"{count}, each {item.text}")


def measured(rule: Rule) -> Rule:
    """Returns the rule of a field that may also be (), and is then measured before training."""
    return rule._replace(
        allows=lambda v: (isinstance(v, list | tuple) and not v) or rule.allows(v),
        text=f"{rule.text}, or () to be measured",
    )


def _is_text(value: Any) -> bool:
    # A path with a control character in it is a mistake, and NUL is none to the system.
    return (
        isinstance(value, str)
        and len(value) <= _LONGEST_TEXT
        and not any(character < " " or character == "\x7f" for character in value)
    )


_TEXT = f"a text of at most {_LONGEST_TEXT} characters, none of them a control character"
TEXT = Rule(_is_text, _TEXT)
NAME = Rule(lambda v: _is_text(v) and bool(v), f"{_TEXT}, and not empty")
BOOLEAN = Rule(lambda v: isinstance(v, bool), "True or False")
PROBABILITY = number(0, 1)
SEED = integer(0, 2**31 - 1)
BLOCK = one_of(
    "conv1a",
    *(
        f"b{stage}" + (f"_{i}" if i else "")
        for stage, n in enumerate((3, 3, 6, 3), 2)
        for i in range(n)
    ),
    "b6",
    "b7",
)
# Layers at which a trained classifier can be opened, see `contract.Method.LAYERS`.
RESNET38_LAYERS = ("b4_3", "b4_5", "b5_2", "bn7")
X17_LAYERS = ("relu3_3",)
LAYER = one_of(*RESNET38_LAYERS, *X17_LAYERS)._replace(
    text=f"one of {RESNET38_LAYERS} with phase 1 and SC-CAM, one of {X17_LAYERS} with HistoSegNet"
)
SATURATION = Rule(
    lambda v: v == "otsu" or (isinstance(v, str) and v.isdecimal() and int(v) <= 255),
    "'otsu' or a whole number of 0 to 255 in quotes",
)
PALETTE = one_of("dataset", "colorblind")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
PRECISION = one_of("", *PRECISIONS)  # "" = that of the training run
TTA = added(one_of("none", "flips", "d4"), "none")


def _are_ways(value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    try:
        for text in value:
            parse_choice(text)
    except (TypeError, ValueError):
        return False
    return True


_WAYS = Rule(
    _are_ways,
    "a sequence of texts such as 'cuda, 3x3, 512 to 1024 at 28, dilation 2: XLA, inside, space to "
    "batch', or () to be taken from convolutions.table",
)

# Fields that several jobs share.
DATA = {
    "data.root": TEXT,
    "data.dataset": TEXT,
    "data.more": added(sequence(NAME), ()),
    "data.source": one_of("folder", "tfds"),
    "data.resize": BOOLEAN,
    "data.patch_size": integer(0, MOST_PIXELS),
    "data.workers": integer(0, 256),
}
_DEVIATION = number(0, MOST_PIXELS, open_low=True)
CRF = {
    "crf.iterations": added(integer(0, 1000), 0),
    "crf.gaussian_sxy": added(_DEVIATION, 3.0),
    "crf.gaussian_weight": added(number(0, LARGEST), 30.0),
    "crf.bilateral_sxy": added(_DEVIATION, 10.0),
    "crf.bilateral_srgb": added(_DEVIATION, 20.0),
    "crf.bilateral_weight": added(number(0, LARGEST), 50.0),
    "crf.truncation": added(number(1, 10), 3.0),
    "crf.stride": added(integer(1, 64), 1),
    "crf.clip": added(number(0, 0.1, open_low=True), 1e-5),
}
TRAINING = {
    "seed": SEED,
    "init": TEXT,
    "strict": BOOLEAN,
    "precision": one_of(*PRECISIONS),
    "convolutions.table": added(TEXT, ""),
    "convolutions.ways": added(_WAYS, ()),
    "batch_size": integer(1, MOST_EXAMPLES),
    "epochs": integer(1, MOST_EPOCHS),
    "accumulate": integer(1, MOST_EXAMPLES),
    "rematerialize": BOOLEAN,
    "drop_last": BOOLEAN,
    "log_every": integer(1, MOST_STEPS),
    "checkpoint_every": integer(1, MOST_STEPS),
    "on_divergence": added(one_of("stop", "restore"), before="stop"),
    "select": one_of("last", "best", "smoothed"),
    "ema.decay": added(number(0, 0.99999), 0.0),
    "augment.flip_horizontal": PROBABILITY,
    "augment.flip_vertical": PROBABILITY,
    "augment.blur": PROBABILITY,
    "augment.blur_radius": number(0, 1.4, open_low=True),
    "augment.transpose": added(PROBABILITY, 0.0),
    "augment.affine": added(PROBABILITY, 0.0),
    "augment.rotation": added(number(0, 180), 180.0),
    "augment.scale": added(sequence(number(0.1, 10), 2), (0.8, 1.25)),
    "augment.color": added(PROBABILITY, 0.0),
    "augment.brightness": added(number(0, 1), 0.2),
    "augment.contrast": added(number(0, 1), 0.2),
    "augment.saturation": added(number(0, 1), 0.2),
    "augment.hue": added(number(0, 0.5), 0.1),
    "augment.stain": added(PROBABILITY, 0.0),
    "augment.stain_factor": added(number(0, 1), 0.05),
    "augment.stain_offset": added(number(0, 1), 0.05),
    "model.width": number(0, 4, open_low=True),
    "model.mean": sequence(number(-LARGEST, LARGEST), 3),
    "model.std": sequence(number(0, LARGEST, open_low=True), 3),
    "optimizer.learning_rate": number(0, LARGEST, open_low=True),
    "optimizer.base_batch_size": integer(0, MOST_EXAMPLES),
    "optimizer.power": number(0, 100),
    "optimizer.momentum": number(0, 1),
    "optimizer.weight_decay": number(0, LARGEST),
    "optimizer.head_multiplier": number(0, LARGEST, open_low=True),
    "optimizer.bias_multiplier": number(0, LARGEST, open_low=True),
    "optimizer.decay_biases": BOOLEAN,
    "optimizer.kind": added(one_of("sgd", "adamw"), before="sgd"),
    "optimizer.betas": added(sequence(number(0, 0.999999), 2), before=(0.9, 0.999)),
    "optimizer.epsilon": added(number(0, 1, open_low=True), before=1e-8),
    "optimizer.decay": added(
        one_of("polynomial", "cosine", "staged", "triangular"), before="polynomial"
    ),
    "optimizer.stages": added(integer(1, MOST_EPOCHS), before=4),
    "optimizer.stage_factor": added(number(0, 1, open_low=True), before=0.5),
    "optimizer.half_cycles": added(integer(1, MOST_EPOCHS), before=16),
    "optimizer.peak_factor": added(number(1, LARGEST), before=20.0),
    "optimizer.nesterov": added(BOOLEAN, before=False),
    "optimizer.decay_scales": added(BOOLEAN, before=True),
    "optimizer.warm_up": added(integer(0, MOST_STEPS), before=0),
    "optimizer.clip_norm": added(number(0, LARGEST), before=0.0),
}
READING = {  # of slides, at one resolution and where there is tissue
    "mpp": number(0, 20),
    "slide_mpp": number(0, 20),
    "resampling": added(one_of("area", "triangle"), "triangle"),
    "tissue.source": NAME,
    "tissue.mask_area": added(one_of("auto", "scanned", "slide"), "slide"),
    "tissue.threshold": SATURATION,
    "tissue.closing": number(0, 1000),
    "tissue.min_tissue": number(0, LARGEST_AREA),
    "tissue.min_hole": number(0, LARGEST_AREA),
}
SLIDES = {
    **READING,
    "phase1": TEXT,
    "tile": integer(0, MOST_PIXELS),
    "stride": integer(0, MOST_PIXELS),
    "window": one_of("flat", "hann"),
    "gate.mode": one_of("probabilities", "logits", "off"),
    "gate.threshold": PROBABILITY,
    "gate.stride": added(integer(0, MOST_PIXELS), 0),
    "min_tissue_share": added(PROBABILITY, 0.0),
    "speed": added(one_of("exact", "fast"), "exact"),
    "white_threshold": integer(0, 255),
    "white_min_area": integer(1, 4096),
    "batch_size": integer(1, MOST_EXAMPLES),
    "precision": added(PRECISION, ""),
    "tta": TTA,
}
