"""Descriptions of data sets (classes, colors, label notation) and the labels in file names."""

import dataclasses
import json
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular

SHIPPED = Path(__file__).parent
ROLES = ("tumor", "stroma", "lymphocytes")
_JOINERS = "\u200c\u200d"  # part of Persian and Indic words
LONGEST_NAME = 100  # characters of a class or data set that tables and legends have room for
COARSEST_MPP = 1000.0  # micrometers per pixel
_OPTIONAL: dict[str, Any] = {"roles": {}, "mpp": None}  # fields that a file may lack
NOTATIONS = {
    # notation: (pattern at the end of the stem, prefix, separator, example for messages)
    "spaces": (re.compile(r"\[([01](?: [01])*)\]$"), "-[", " ", "-[1 0 0 1].png"),
    "commas": (re.compile(r"\[([01](?:, ?[01])*)\]$"), "-[", ", ", "-[1, 0, 1].png"),
    "compact": (re.compile(r"\[([01]+)\]$"), "[", "", "+12[1101].png"),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Description of a data set; the content of a `dataset.json`.

    Attributes:
      name: what reports call it.
      classes: class names in index order, 0..C-1.
      palette: RGB (0..255) of each class, then of the excluded index: C + 1 colors.
      white: whether index C is white background, recognized by its brightness (LUAD-HistoSeg);
        False if C only means "not annotated" (BCSS-WSSS).
      label_notation: how training file names spell their label: "spaces", "commas", "compact".
      present_share: least share of a patch's pixels (0..1) for a class to count as present
        when a label is derived from a mask; 0 means a single pixel is enough.
      roles: which class is which of `ROLES`, for the ratios of a slide, such as {"tumor": "TE"};
        optional in a file.
      mpp: micrometers per pixel of the patches, at which slides are segmented; None if unknown,
        optional in a file.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    white: bool
    label_notation: str
    present_share: float
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mpp: float | None = None

    @property
    def num_classes(self) -> int:
        """C, without the excluded index."""
        return len(self.classes)

    @property
    def excluded(self) -> int:
        """The mask value of white background and of what is not annotated: C."""
        return len(self.classes)


def load_dataset(spec: str, root: str | Path) -> Dataset:
    """Reads and checks a data set's description.

    Args:
      spec: a shipped name ("luad_histoseg", "bcss_wsss", "wsss4luad"), the path of a
        `dataset.json`, or "" for `<root>/dataset.json`.
      root: the data set's folder.

    Raises:
      InputError: no such description, or a field of it is missing, unknown or impossible.
    """
    shipped = sorted(path.stem for path in SHIPPED.glob("*.json"))
    if spec in shipped:
        path = SHIPPED / f"{spec}.json"
    elif spec:
        path = Path(spec)
    else:
        path = Path(root) / "dataset.json"
    if not path.exists():
        raise InputError(
            f"{path}: no such data set description; write it (see data/README.md) or name one of "
            + ", ".join(shipped)
        )
    check_regular(path)
    try:
        fields = json.loads(  # Windows editors put a byte order mark before the text
            path.read_text(encoding="utf-8-sig"),
            object_pairs_hook=_build_object,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); correct it (see data/README.md)") from error
    return make_dataset(fields, path)


def is_printable(text: str) -> bool:
    """Whether all characters are visible: no line breaks, control or direction marks.

    The parts of a file name that are not UTF-8 are not visible either.
    """
    return all(
        c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text
    )


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """Writes a description that `load_dataset` reads back to an equal `Dataset`."""
    fields = dataclasses.asdict(dataset)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def strip_label(stem: str) -> str:
    """Leaves out the label that the name of a patch of a data set ends with."""
    for pattern, *_ in NOTATIONS.values():
        if found := pattern.search(stem):
            return stem[: found.start()].removesuffix("-")
    return stem


def parse_label(filename: str, dataset: Dataset) -> tuple[int, ...]:
    """Parses the multi-hot label, C values of 0 or 1, at the end of a training patch's file name.

    Raises:
      InputError: no label there, one of another length, or one in another notation.
    """
    pattern, _, _, example = NOTATIONS[dataset.label_notation]
    stem = Path(filename).stem
    match = pattern.search(stem)
    if match is None:
        for notation, (other, *_) in NOTATIONS.items():
            if other.search(stem):
                raise InputError(
                    f"{filename}: label is not in the notation {dataset.label_notation!r} but in "
                    f"{notation!r}; set label_notation to {notation!r} in the data set's JSON"
                )
        raise InputError(
            f"{filename}: no label at the end of the name; expected one of "
            f"{dataset.num_classes} values like {example}"
        )
    label = tuple(int(value) for value in re.findall("[01]", match.group(1)))
    if len(label) != dataset.num_classes:
        raise InputError(
            f"{filename}: label has {len(label)} values but {dataset.name} has "
            f"{dataset.num_classes} classes ({', '.join(dataset.classes)}); "
            "rename the file or correct the classes in the data set's JSON"
        )
    return label


def format_label(label: Iterable[int], dataset: Dataset) -> str:
    """Formats a label for the end of a patch's file name, before ".png"; inverts `parse_label`.

    "-[1 0 0 1]" in the notation "spaces", "-[1, 0, 1]" in "commas", "[1101]" in "compact".
    """
    values = [str(int(value)) for value in label]
    if len(values) != dataset.num_classes or not set(values) <= {"0", "1"}:
        raise ValueError(f"label {values} is not {dataset.num_classes} values of 0 or 1")
    _, prefix, separator, _ = NOTATIONS[dataset.label_notation]
    return prefix + separator.join(values) + "]"


def derive_label(mask: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Derives the multi-hot label of a patch from its mask.

    A class is present if it covers at least one pixel, and at least `present_share` of all pixels
    of the patch, excluded ones included.

    Args:
      mask: (H, W) uint8 of class indices, C for excluded.
      dataset: has the classes and `present_share`.

    Returns:
      (C,) uint8 of 0 and 1.
    """
    counts = np.bincount(mask.ravel(), minlength=dataset.num_classes + 1)[: dataset.num_classes]
    return ((counts > 0) & (counts >= dataset.present_share * mask.size)).astype(np.uint8)


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Makes a dictionary of a JSON object's pairs; refuses a name that occurs twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((double, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{_shorten(double)} occurs twice")
    return fields


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def make_dataset(fields: object, path: Path) -> Dataset:
    """Makes a `Dataset` of a decoded JSON object.

    Raises:
      InputError: names `path` and the field that is missing, unknown or impossible.
    """
    if not isinstance(fields, Mapping):
        raise InputError(f"{path}: not a JSON object; write one (see data/README.md)")
    known = [field.name for field in dataclasses.fields(Dataset)]
    for field in fields:
        if field not in known:
            raise InputError(
                f"{path}: field {_shorten(field)} is unknown; the fields are {', '.join(known)}"
            )
    for field in known:
        if field not in fields and field not in _OPTIONAL:
            raise InputError(f"{path}: field {field!r} is missing; add it (see data/README.md)")
    fields = {**_OPTIONAL, **fields}
    for field, check in _CHECKS.items():
        if problem := check(fields):
            raise InputError(f"{path}: field {field!r} {problem}")
    return Dataset(
        name=fields["name"],
        classes=tuple(fields["classes"]),
        palette=tuple(tuple(color) for color in fields["palette"]),
        white=fields["white"],
        label_notation=fields["label_notation"],
        present_share=float(fields["present_share"]),
        roles=dict(fields["roles"]),
        mpp=fields["mpp"],
    )


# Each returns what is wrong with a field, or "". No field is missing, and those before are right.


def _check_name(fields: Mapping) -> str:
    problem = _find_name_problem(fields["name"])
    return f"is {_shorten(fields['name'])}; {problem}" if problem else ""


def _check_classes(fields: Mapping) -> str:
    classes = fields["classes"]
    if not isinstance(classes, list) or not 2 <= len(classes) <= 255:
        return "must be a list of 2 to 255 class names"
    for index, value in enumerate(classes):
        if problem := _find_name_problem(value):
            return f"has {_shorten(value)} as class {index}; {problem}"
        if _fold(value) in map(_fold, classes[:index]):
            return (
                f"has {value!r} twice, apart from upper and lower case, blanks or how an accent is "
                "stored; give each class its own name"
            )
    return ""


def _check_palette(fields: Mapping) -> str:
    palette, count = fields["palette"], len(fields["classes"])
    if not isinstance(palette, list) or len(palette) != count + 1:
        return (
            f"must be a list of {count + 1} colors: one for each of the {count} classes, then the "
            "excluded color"
        )
    for index, color in enumerate(palette):
        if not (
            isinstance(color, list)
            and len(color) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in color)
        ):
            return f"has {_shorten(color)} as color {index}; give [R, G, B] in 0..255"
        if color in palette[:index]:
            return f"has the color {color} twice; give each index its own"
    return ""


def _check_roles(fields: Mapping) -> str:
    roles, classes = fields["roles"], fields["classes"]
    if not isinstance(roles, Mapping):
        return f'is {_shorten(roles)}; give an object such as {{"tumor": {classes[0]!r}}}'
    for role, value in roles.items():
        if role not in ROLES:
            return f"has {_shorten(role)}; the roles are {', '.join(ROLES)}"
        if value not in classes:
            return f"has {_shorten(value)} as {role}; give one of {', '.join(classes)}"
        if list(roles.values()).count(value) > 1:
            return f"has {value!r} twice; give each role its own class"
    return ""


def _require(field: str, is_valid: Callable[[Any], bool], remedy: str) -> Callable[[Mapping], str]:
    def check(fields: Mapping) -> str:
        value = fields[field]
        return "" if is_valid(value) else f"is {_shorten(value)}; {remedy}"

    return check


_CHECKS = {
    "name": _check_name,
    "classes": _check_classes,
    "palette": _check_palette,
    "white": _require("white", lambda value: isinstance(value, bool), "give true or false"),
    "label_notation": _require(
        "label_notation",
        lambda value: value in list(NOTATIONS),  # a list: values from JSON may have no hash
        f"give one of {', '.join(NOTATIONS)}",
    ),
    "present_share": _require(
        "present_share",
        lambda value: _is_number(value) and 0 <= value < 1,
        "give a number from 0 to below 1",
    ),
    "roles": _check_roles,
    "mpp": _require(
        "mpp",
        lambda value: value is None or (_is_number(value) and 0 < value <= COARSEST_MPP),
        "give micrometers per pixel, such as 0.5, or null",
    ),
}


def _find_name_problem(value: object) -> str:
    """Returns why something cannot be a name, or ""."""
    if not isinstance(value, str) or not value.strip():
        return "give a text"
    if not is_printable(value):
        return "leave out characters that do not print"
    if len(value) > LONGEST_NAME:
        return f"give at most {LONGEST_NAME} characters"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


_shorten = reprlib.repr  # for messages
