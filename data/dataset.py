"""What a data set is: its classes, colors and label notation, and the labels in file names."""

import dataclasses
import json
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular

SHIPPED = Path(__file__).parent
ROLES = ("tumor", "stroma", "lymphocytes")
_JOINERS = "\u200c\u200d"  # which Persian and Indic words are written with
LONGEST_NAME = 100  # characters of a class or data set, which tables and legends have room for
COARSEST_MPP = 1000.0  # micrometers per pixel
NOTATIONS = {
    # notation: (pattern at the end of the stem, prefix, separator, example for messages)
    "spaces": (re.compile(r"\[([01](?: [01])*)\]$"), "-[", " ", "-[1 0 0 1].png"),
    "commas": (re.compile(r"\[([01](?:, ?[01])*)\]$"), "-[", ", ", "-[1, 0, 1].png"),
    "compact": (re.compile(r"\[([01]+)\]$"), "[", "", "+12[1101].png"),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The description of one data set; the content of a `dataset.json`.

    Attributes:
        name: what reports call it.
        classes: class names in index order, 0..C-1.
        palette: RGB (0..255) of each class, then of the excluded index: C + 1 colors.
        white: whether index C is white background that brightness finds (LUAD-HistoSeg);
            False where C only means "not annotated" (BCSS-WSSS).
        label_notation: how training file names spell their label: "spaces", "commas", "compact".
        present_share: least share of a patch's pixels (0..1) for a class to count as present
            when a label is derived from a mask; 0 means a single pixel is enough.
        roles: which class is which of `ROLES`, for the ratios of a slide, such as {"tumor": "TE"};
            may be missing in a file.
        mpp: micrometers per pixel of the patches, at which slides are segmented; None, or missing
            in a file, where nobody knows.
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
    """Reads and validates a data set's description.

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
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); correct it (see data/README.md)") from error
    return _from_fields(fields, path)


def is_printable(text: str) -> bool:
    """Whether all characters can be seen: no line breaks, control or direction marks.

    Parts of a file name that are no UTF-8 cannot either.
    """
    return all(
        c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text
    )


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """Writes a description that `load_dataset` reads back to an equal `Dataset`."""
    fields = dataclasses.asdict(dataset)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def parse_label(filename: str, dataset: Dataset) -> tuple[int, ...]:
    """The multi-hot label, C values of 0 or 1, at the end of a training patch's file name.

    Raises:
        InputError: no label there, one of another length, or one in another notation.
    """
    pattern, _, _, example = NOTATIONS[dataset.label_notation]
    stem = Path(filename).stem
    found = pattern.search(stem)
    if found is None:
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
    label = tuple(int(value) for value in re.findall("[01]", found.group(1)))
    if len(label) != dataset.num_classes:
        raise InputError(
            f"{filename}: label has {len(label)} values but {dataset.name} has "
            f"{dataset.num_classes} classes ({', '.join(dataset.classes)}); "
            "rename the file or correct the classes in the data set's JSON"
        )
    return label


def format_label(label: Iterable[int], dataset: Dataset) -> str:
    """What goes between a patch's name and ".png": the inverse of `parse_label`.

    "-[1 0 0 1]" in the notation "spaces", "-[1, 0, 1]" in "commas", "[1101]" in "compact".
    """
    values = [str(int(value)) for value in label]
    if len(values) != dataset.num_classes or not set(values) <= {"0", "1"}:
        raise ValueError(f"label {values} is not {dataset.num_classes} values of 0 or 1")
    _, prefix, separator, _ = NOTATIONS[dataset.label_notation]
    return prefix + separator.join(values) + "]"


def derive_label(mask: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The multi-hot label of a patch from its mask.

    A class is present when it covers at least `present_share` of all the patch's pixels, the
    excluded ones counted in, and one pixel at the least.

    Args:
        mask: (H, W) uint8 of class indices, C for excluded.

    Returns:
        (C,) uint8 of 0 and 1.
    """
    counts = np.bincount(mask.ravel(), minlength=dataset.num_classes + 1)[: dataset.num_classes]
    return ((counts > 0) & (counts >= dataset.present_share * mask.size)).astype(np.uint8)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((double, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{reprlib.repr(double)} is there twice")
    return fields


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _problem_of_name(value: object) -> str:
    """Why something cannot be a name, or ""."""
    if not isinstance(value, str) or not value.strip():
        return "give a text"
    if not is_printable(value):
        return "leave out characters that do not print"
    if len(value) > LONGEST_NAME:
        return f"give at most {LONGEST_NAME} characters"
    return ""


def _from_fields(fields: object, path: Path) -> Dataset:
    """A `Dataset` of a decoded JSON object, every field checked."""
    shown = reprlib.repr  # shortened

    def refuse(field: str, problem: str) -> InputError:
        return InputError(f"{path}: field {shown(field)} {problem}")

    if not isinstance(fields, Mapping):
        raise InputError(f"{path}: not a JSON object; write one (see data/README.md)")
    known = [field.name for field in dataclasses.fields(Dataset)]
    for field in fields:
        if field not in known:
            raise refuse(field, f"is unknown; the fields are {', '.join(known)}")
    for field in known:
        if field not in fields and field not in ("roles", "mpp"):
            raise refuse(field, "is missing; add it (see data/README.md)")

    name, classes, palette = fields["name"], fields["classes"], fields["palette"]
    if problem := _problem_of_name(name):
        raise refuse("name", f"is {shown(name)}; {problem}")
    if not isinstance(classes, list) or not 2 <= len(classes) <= 255:
        raise refuse("classes", "must be a list of 2 to 255 class names")
    for index, value in enumerate(classes):
        if problem := _problem_of_name(value):
            raise refuse("classes", f"has {shown(value)} as class {index}; {problem}")
        if _folded(value) in map(_folded, classes[:index]):
            raise refuse(
                "classes",
                f"has {value!r} twice, but for upper and lower case, blanks or how an accent is "
                "stored; give each class its own name",
            )
    if not isinstance(palette, list) or len(palette) != len(classes) + 1:
        raise refuse(
            "palette",
            f"must be a list of {len(classes) + 1} colors: one for each of the {len(classes)} "
            "classes, then the excluded color",
        )
    for index, color in enumerate(palette):
        if not (
            isinstance(color, list)
            and len(color) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in color)
        ):
            raise refuse(
                "palette", f"has {shown(color)} as color {index}; give [R, G, B] in 0..255"
            )
        if color in palette[:index]:
            raise refuse("palette", f"has the color {color} twice; give each index its own")
    if not isinstance(fields["white"], bool):
        raise refuse("white", f"is {shown(fields['white'])}; give true or false")
    if fields["label_notation"] not in list(NOTATIONS):
        value = shown(fields["label_notation"])
        raise refuse("label_notation", f"is {value}; give one of {', '.join(NOTATIONS)}")
    share = fields["present_share"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise refuse("present_share", f"is {shown(share)}; give a number from 0 to below 1")
    roles = fields.get("roles", {})
    if not isinstance(roles, Mapping):
        raise refuse(
            "roles", f'is {shown(roles)}; give an object such as {{"tumor": {classes[0]!r}}}'
        )
    for role, value in roles.items():
        if role not in ROLES:
            raise refuse("roles", f"has {shown(role)}; the roles are {', '.join(ROLES)}")
        if value not in classes:
            raise refuse("roles", f"has {shown(value)} as {role}; give one of {', '.join(classes)}")
        if list(roles.values()).count(value) > 1:
            raise refuse("roles", f"has {value!r} twice; give each role its own class")
    mpp = fields.get("mpp")
    if mpp is not None and (
        isinstance(mpp, bool) or not isinstance(mpp, int | float) or not 0 < mpp <= COARSEST_MPP
    ):
        raise refuse("mpp", f"is {shown(mpp)}; give micrometers per pixel, such as 0.5, or null")
    return Dataset(
        name=name,
        classes=tuple(classes),
        palette=tuple(tuple(color) for color in palette),
        white=fields["white"],
        label_notation=fields["label_notation"],
        present_share=float(share),
        roles=dict(roles),
        mpp=mpp,
    )
