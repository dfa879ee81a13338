"""What a configuration may say: the check of every field, and its way to and from disk.

`configs/base.py` holds the defaults; the table here says which fields exist and which values are
possible, so that a misspelled or impossible field is refused before anything is loaded.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from wsss_jax import __version__
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

CONFIG_FILE = "config.json"
VERSION = "version"  # in the file only: of the software that wrote it
FIRST_VERSION = "0.1.0"  # which did not say


# Bounds: a number beyond them is a slip of the keyboard and would take all memory, or crash.
_LONGEST_TEXT = 4096  # as the longest path of Linux
_LONGEST_SEQUENCE = 256
_LONGEST_SHOWN = 200  # characters of a wrong value in a message
_MOST_PIXELS = 8192  # of a side of what a network sees at once
_MOST_EXAMPLES = 65_536  # of a batch
_MOST_EPOCHS = 10_000
_MOST_STEPS = 10**9
_LARGEST = 1e6  # of factors, rates and statistics
_LARGEST_AREA = 1e12  # square micrometers: a square meter


class Rule(NamedTuple):
    """Which values a field may have: a test and its description for the error message."""

    allows: Callable[[Any], bool]
    text: str


def _one_of(*choices: str) -> Rule:
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
BLOCK = _one_of(
    "conv1a",
    *(
        f"b{stage}" + (f"_{i}" if i else "")
        for stage, n in enumerate((3, 3, 6, 3), 2)
        for i in range(n)
    ),
    "b6",
    "b7",
)
LAYER = _one_of("b4_3", "b4_5", "b5_2", "bn7")
SATURATION = Rule(
    lambda v: v == "otsu" or (isinstance(v, str) and v.isdecimal() and int(v) <= 255),
    "'otsu' or a whole number of 0 to 255 in quotes",
)
PALETTE = _one_of("dataset", "colorblind")
PRECISION = _one_of("", "float32", "bfloat16")  # "" = that of the training run
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
    "data.source": _one_of("folder", "tfds"),
    "data.resize": BOOLEAN,
    "data.patch_size": _integer(0, _MOST_PIXELS),
    "data.workers": _integer(0, 256),
}
_TRAINING = {
    "seed": SEED,
    "init": TEXT,
    "strict": BOOLEAN,
    "precision": _one_of("float32", "bfloat16"),
    "batch_size": _integer(1, _MOST_EXAMPLES),
    "epochs": _integer(1, _MOST_EPOCHS),
    "accumulate": _integer(1, _MOST_EXAMPLES),
    "rematerialize": BOOLEAN,
    "drop_last": BOOLEAN,
    "log_every": _integer(1, _MOST_STEPS),
    "checkpoint_every": _integer(1, _MOST_STEPS),
    "select": _one_of("last", "best"),
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
    "model.batch_norm": _one_of("auto", "frozen", "trained"),
    "model.frozen_blocks": _sequence(BLOCK),
    "model.dropout_rates": _sequence(_number(0, 0.99), 3),
    "pda.schedule": _one_of("progressive", "constant", "off"),
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
    "absent": _one_of("excluded", "zero"),
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
    "loss.white": _one_of("excluded", "logit"),
    "loss.white_logit": _number(0, _LARGEST),
    "loss.divide_by_batch": BOOLEAN,
    "model.blocks": _sequence(_integer(1, 100), 4),
    "model.dropout_rates": _sequence(_number(0, 0.99), 3),
}
_EVALUATE = {
    **_DATA,
    "phase1": TEXT,
    "phase2": TEXT,
    "split": _one_of("val", "test"),
    "gate.mode": _one_of("probabilities", "logits", "off"),
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
    "resampling": _one_of("area", "triangle"),
    "tile": _integer(0, _MOST_PIXELS),
    "stride": _integer(0, _MOST_PIXELS),
    "window": _one_of("flat", "hann"),
    "gate.mode": _one_of("probabilities", "logits", "off"),
    "gate.threshold": PROBABILITY,
    "tissue.source": NAME,
    "tissue.mask_area": _one_of("auto", "scanned", "slide"),
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
    "engine": _one_of("local", "ray"),
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
    "formats": _sequence(_one_of("pth", "safetensors", "stablehlo", "orbax")),
    "precision": _one_of("float32", "bfloat16"),
    "platforms": _sequence(_one_of("cpu", "cuda", "tpu")),
    "size": _integer(0, _MOST_PIXELS),
}
_COMPARE = {
    "phase": _integer(1, 2),
    "weights": NAME,
    "images": NAME,
    "golden": TEXT,
    "record": TEXT,
    "precision": _one_of("float32", "bfloat16", "float64"),
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


def _leaves(config: Mapping, prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping | ml_collections.ConfigDict) and path != "codes":
            found.update(_leaves(value, f"{path}."))
        else:
            found[path] = value
    return found


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuses a field that does not exist, is missing, or has an impossible value.

    Raises:
      InputError: names the field (`config.optimizer.momentum`) and what is allowed.
    """
    _validate(config, "config.")


def _validate(config: ml_collections.ConfigDict, prefix: str) -> None:
    job = config.get("job")
    if not isinstance(job, str) or job not in RULES:
        raise InputError(f"{prefix}job is {_shown(job)}: it must be {_one_of(*RULES).text}")
    rules = RULES[job]
    leaves = _leaves(config)
    del leaves["job"]
    nested = NESTED_JOBS.get(job)
    if nested:
        jobs = config.get("jobs", {})
        if not isinstance(jobs, ml_collections.ConfigDict) or set(jobs) != set(nested):
            raise InputError(f"{prefix}jobs must hold {', '.join(nested)} and nothing else")
        for name in nested:
            if not isinstance(jobs[name], ml_collections.ConfigDict):
                raise InputError(f"{prefix}jobs.{name} must hold the fields of that job")
            _validate(jobs[name], f"{prefix}jobs.{name}.")
        leaves = {k: v for k, v in leaves.items() if not k.startswith("jobs.")}
    for path, value in leaves.items():
        if path not in rules:
            near = difflib.get_close_matches(path, rules, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise InputError(f"{prefix}{path}: the job {job!r} has no such field{hint}")
        if not rules[path].allows(value):
            raise InputError(f"{prefix}{path} is {_shown(value)}: it must be {rules[path].text}")
    missing = sorted(set(rules) - set(leaves))
    if missing:
        raise InputError(f"{prefix}{missing[0]} is missing: it must be {rules[missing[0]].text}")
    if job == "phase2" and len(config.layers) != len(config.layer_weights):
        raise InputError(
            f"{prefix}layer_weights has {len(config.layer_weights)} entries for the "
            f"{len(config.layers)} of {prefix}layers: give one weight for each layer"
        )
    if job in ("phase2", "masks") and not config.layers:
        raise InputError(f"{prefix}layers is empty: name at least one layer")
    if job == "evaluate" and not (config.phase1 or config.phase2):
        raise InputError(f"{prefix}phase1 and {prefix}phase2 are empty: name at least one run")
    for field in ("formats", "platforms") if job == "export" else ():
        if not config[field]:
            raise InputError(f"{prefix}{field} is empty: it must be {rules[field].text}")
    if job == "prepare" and abs(sum(config.shares) - 1) > 1e-6:
        raise InputError(
            f"{prefix}shares is {tuple(config.shares)}: train, val and test must sum to 1"
        )


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def to_json(config: ml_collections.ConfigDict) -> str:
    """The whole configuration as JSON text (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """Inverse of `to_json`; lists become tuples, so that it equals the original."""

    return ml_collections.ConfigDict(_with_tuples(json.loads(text)))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def differences(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> list[str]:
    """The fields in which two configurations differ, as `field: a / b`."""
    a, b = _leaves(one), _leaves(other)
    return [
        f"{path}: {a.get(path)!r} / {b.get(path)!r}"
        for path in sorted(set(a) | set(b))
        if a.get(path) != b.get(path)
    ]


def save(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes `config.json` into a run's folder, with the version of this software."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({VERSION: __version__, **config.to_dict()}, indent=2) + "\n"
    with atomic_path(workdir / CONFIG_FILE) as path:
        path.write_text(text, encoding="utf-8")


def load(workdir: Path, field: str) -> ml_collections.ConfigDict:
    """The configuration of an earlier run; fields that came later do what that version did.

    Args:
      workdir: the run's folder, as the user named it in `field`.
      field: the name of that field, for the message.

    Raises:
      InputError: no run there, or one that this version does not know.
    """
    path, values = _read(workdir, field)
    values.pop(VERSION, None)
    _add_later_fields(values)
    try:
        config = ml_collections.ConfigDict(values)
    except (ValueError, TypeError, RecursionError) as error:  # names that no field can have
        raise InputError(f"{path}: no configuration of a run; run that job again") from error
    try:
        _validate(config, f"{path}: ")
    except InputError as error:
        raise InputError(
            f"{error} (was it written by a later version?); run that job again"
        ) from error
    return config


def version(workdir: Path, field: str) -> str:
    """The version of this software that wrote a run; arguments and errors as of `load`."""
    return str(_read(workdir, field)[1].get(VERSION, FIRST_VERSION))


def _read(workdir: Path, field: str) -> tuple[Path, dict[str, Any]]:
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"config.{field}: {workdir} holds no run ({CONFIG_FILE} is missing); "
            f"run that job first or set --config.{field} to its workdir"
        )
    return path, _object(path, path.read_bytes())


def _object(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object of a file, lists as tuples."""
    try:
        values = _with_tuples(json.loads(content))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise InputError(f"{path}: not JSON ({error}); run that job again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not an object of JSON, {{...}}; run that job again")
    return values


def _add_later_fields(values: dict[str, Any]) -> None:
    job = values.get("job")
    if not isinstance(job, str):
        return
    for path, value in ADDED.get(job, {}).items():
        *sections, name = path.split(".")
        part = values
        for section in sections:
            part = part.get(section) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part.setdefault(name, value)
    nested = values.get("jobs")
    for name in NESTED_JOBS.get(job, ()):
        if isinstance(nested, dict) and isinstance(nested.get(name), dict):
            _add_later_fields(nested[name])
