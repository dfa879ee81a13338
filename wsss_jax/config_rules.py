"""Which fields a job has, and which values each may have.

`configs/base.py` holds the defaults; the tables here say what is possible, so that a misspelled or
impossible field is refused before anything is loaded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

# Bounds: a number beyond them is a slip of the keyboard and would take all memory, or crash.
_LONGEST_TEXT = 4096  # as the longest path of Linux
_LONGEST_SEQUENCE = 256
_MOST_PIXELS = 8192  # of a side of what a network sees at once
_MOST_EXAMPLES = 4096  # of a batch
_MOST_EPOCHS = 10_000
_MOST_STEPS = 10**9
_LARGEST = 1e6  # of factors, rates and statistics
_LARGEST_AREA = 1e12  # square micrometers: a square meter


class Rule(NamedTuple):
    """Which values a field may have: a test and its description for the error message."""

    allows: Callable[[Any], bool]
    text: str


def one_of(*choices: str) -> Rule:
    """Allows these texts only."""
    return Rule(lambda v: v in choices, "one of " + ", ".join(map(repr, choices)))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(least: int, most: int) -> Rule:
    return Rule(
        lambda v: _is_int(v) and least <= v <= most,
        f"an integer of at least {least}, at most {most}",
    )


def _number(low: float, high: float, *, open_low: bool = False) -> Rule:
    def allows(v: Any) -> bool:
        if not (_is_int(v) or isinstance(v, float)):
            return False
        return (low < v if open_low else low <= v) and v <= high

    bounds = f"{'over' if open_low else 'at least'} {low:g}"
    return Rule(allows, f"a number {bounds}, at most {high:g}")


def _sequence(item: Rule, length: int | None = None) -> Rule:
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
PROBABILITY = _number(0, 1)
SEED = _integer(0, 2**31 - 1)
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
LAYER = one_of("b4_3", "b4_5", "b5_2", "bn7")
SATURATION = Rule(
    lambda v: v == "otsu" or (isinstance(v, str) and v.isdecimal() and int(v) <= 255),
    "'otsu' or a whole number of 0 to 255 in quotes",
)
PALETTE = one_of("dataset", "colorblind")
PRECISION = one_of("", "float32", "bfloat16")  # "" = that of the training run
CODES = Rule(
    lambda v: (
        isinstance(v, Mapping | ml_collections.ConfigDict)
        and all(_sequence(_integer(0, 255)).allows(codes) for codes in v.values())
    ),
    "a mapping from class name to the mask values (0 to 255) that mean it",
)

_DATA = {
    "data.root": TEXT,
    "data.dataset": TEXT,
    "data.source": one_of("folder", "tfds"),
    "data.resize": BOOLEAN,
    "data.patch_size": _integer(0, _MOST_PIXELS),
    "data.workers": _integer(0, 256),
}
_TRAINING = {
    "seed": SEED,
    "init": TEXT,
    "strict": BOOLEAN,
    "precision": one_of("float32", "bfloat16"),
    "batch_size": _integer(1, _MOST_EXAMPLES),
    "epochs": _integer(1, _MOST_EPOCHS),
    "accumulate": _integer(1, _MOST_EXAMPLES),
    "rematerialize": BOOLEAN,
    "drop_last": BOOLEAN,
    "log_every": _integer(1, _MOST_STEPS),
    "checkpoint_every": _integer(1, _MOST_STEPS),
    "select": one_of("last", "best"),
    "augment.flip_horizontal": PROBABILITY,
    "augment.flip_vertical": PROBABILITY,
    "augment.blur": PROBABILITY,
    "augment.blur_radius": _number(0, 1.4, open_low=True),
    "model.width": _number(0, 4, open_low=True),
    "model.mean": _sequence(_number(-_LARGEST, _LARGEST), 3),
    "model.std": _sequence(_number(0, _LARGEST, open_low=True), 3),
    "optimizer.learning_rate": _number(0, _LARGEST, open_low=True),
    "optimizer.base_batch_size": _integer(0, _MOST_EXAMPLES),
    "optimizer.power": _number(0, 100),
    "optimizer.momentum": _number(0, 1),
    "optimizer.weight_decay": _number(0, _LARGEST),
    "optimizer.head_multiplier": _number(0, _LARGEST, open_low=True),
    "optimizer.bias_multiplier": _number(0, _LARGEST, open_low=True),
    "optimizer.decay_biases": BOOLEAN,
}
_PHASE1 = {
    **_DATA,
    **_TRAINING,
    "model.batch_norm": one_of("auto", "frozen", "trained"),
    "model.frozen_blocks": _sequence(BLOCK),
    "model.dropout_rates": _sequence(_number(0, 0.99), 3),
    "pda.schedule": one_of("progressive", "constant", "off"),
    "pda.decay": _number(0, 1, open_low=True),
    "pda.floor": _number(0, 1, open_low=True),
    "pda.clip": BOOLEAN,
    "pda.hold_epochs": _integer(1, _MOST_EPOCHS),
    "pda.off_epochs": _integer(0, _MOST_EPOCHS),
    "pda.constant": _number(0, 1, open_low=True),
    "pda.relu": BOOLEAN,
    "pda.divisor": _integer(0, 255),
    "cam.threshold": PROBABILITY,
    "cam.relu": BOOLEAN,
}
_MASKS = {
    **_DATA,
    "phase1": NAME,
    "layers": _sequence(LAYER),
    "absent": one_of("excluded", "zero"),
    "white_threshold": _integer(0, 255),
    "white_min_area": _integer(0, _MOST_PIXELS**2),
    "batch_size": _integer(1, _MOST_EXAMPLES),
    "palette": PALETTE,
    "sheet_patches": _integer(0, 1000),
    "seed": SEED,
}
_PHASE2 = {
    **_DATA,
    **_TRAINING,
    "masks": NAME,
    "layers": _sequence(NAME),
    "layer_weights": _sequence(_number(0, _LARGEST)),
    "loss.white": one_of("excluded", "logit"),
    "loss.white_logit": _number(0, _LARGEST),
    "loss.divide_by_batch": BOOLEAN,
    "model.blocks": _sequence(_integer(1, 100), 4),
    "model.dropout_rates": _sequence(_number(0, 0.99), 3),
}
_EVALUATE = {
    **_DATA,
    "phase1": TEXT,
    "phase2": TEXT,
    "split": one_of("val", "test"),
    "gate.mode": one_of("probabilities", "logits", "off"),
    "gate.threshold": PROBABILITY,
    "batch_size": _integer(1, _MOST_EXAMPLES),
    "precision": PRECISION,
    "palette": PALETTE,
    "sheet_patches": _integer(0, 1000),
}
_SLIDES = {
    "phase1": TEXT,
    "mpp": _number(0, 20),
    "slide_mpp": _number(0, 20),
    "resampling": one_of("area", "triangle"),
    "tile": _integer(0, _MOST_PIXELS),
    "stride": _integer(0, _MOST_PIXELS),
    "window": one_of("flat", "hann"),
    "gate.mode": one_of("probabilities", "logits", "off"),
    "gate.threshold": PROBABILITY,
    "tissue.source": NAME,
    "tissue.mask_area": one_of("auto", "scanned", "slide"),
    "tissue.threshold": SATURATION,
    "tissue.closing": _number(0, 1000),
    "tissue.min_tissue": _number(0, _LARGEST_AREA),
    "tissue.min_hole": _number(0, _LARGEST_AREA),
    "white_threshold": _integer(0, 255),
    "white_min_area": _integer(1, 4096),
    "batch_size": _integer(1, _MOST_EXAMPLES),
    "precision": PRECISION,
}
_SEGMENT = {
    **_SLIDES,
    "slides": NAME,
    "phase2": NAME,
    "mpp_table": TEXT,
    "engine": one_of("local", "ray"),
    "probabilities": BOOLEAN,
    "geojson.min_area": _number(0, _LARGEST_AREA),
    "geojson.simplify": _number(0, 1000),
    "picture": _integer(64, 2048),
    "palette": PALETTE,
}
_DOCTOR = {**_SLIDES, "slide": TEXT, "phase2": TEXT}
_PREPARE = {
    "images": NAME,
    "masks": NAME,
    "out": NAME,
    "dataset": NAME,
    "codes": CODES,
    "excluded": _sequence(_integer(0, 255)),
    "patch": _integer(8, _MOST_PIXELS),
    "stride": _integer(1, _MOST_PIXELS),
    "resize": _integer(8, _MOST_PIXELS),
    "min_share": PROBABILITY,
    "shares": _sequence(PROBABILITY, 3),
    "seed": SEED,
    "workers": _integer(1, 256),
}
_DEMO = {
    "size": _integer(32, 1024),
    "train": _integer(1, 10**6),
    "val": _integer(1, 10**6),
    "test": _integer(1, 10**6),
    "seed": SEED,
}
_CONVERT = {"weights": NAME, "strict": BOOLEAN}
_EXPORT = {
    "run": NAME,
    "formats": _sequence(one_of("pth", "safetensors", "stablehlo", "orbax")),
    "precision": one_of("float32", "bfloat16"),
    "platforms": _sequence(one_of("cpu", "cuda", "tpu")),
    "size": _integer(0, _MOST_PIXELS),
}
_COMPARE = {
    "phase": _integer(1, 2),
    "weights": NAME,
    "images": NAME,
    "golden": TEXT,
    "record": TEXT,
    "precision": one_of("float32", "bfloat16", "float64"),
}
RULES: dict[str, dict[str, Rule]] = {
    "phase1": _PHASE1,
    "masks": _MASKS,
    "phase2": _PHASE2,
    "evaluate": _EVALUATE,
    "segment": _SEGMENT,
    "doctor": _DOCTOR,
    "prepare": _PREPARE,
    "demo": _DEMO,
    "convert": _CONVERT,
    "export": _EXPORT,
    "compare": _COMPARE,
}
# Jobs that hold others, each under `jobs.<name>` with the fields of that job: those that the demo
# runs, those whose run a converted file of weights becomes.
NESTED_JOBS = {
    "demo": ("phase1", "masks", "phase2", "evaluate"),
    "convert": ("phase1", "phase2"),
}
# Fields that came after version 0.1, by job, with the value that does what was done without them.
_ADDED_SLIDES = {"resampling": "triangle", "tissue.mask_area": "slide", "precision": ""}
ADDED: dict[str, dict[str, Any]] = {
    "masks": {"palette": "dataset"},
    "evaluate": {"palette": "dataset", "precision": ""},
    "segment": {**_ADDED_SLIDES, "palette": "dataset"},
    "doctor": _ADDED_SLIDES,
}
