"""Which class a drawn label means."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.dataset import Dataset, load_dataset, make_dataset
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.polygons import geojson, labelme
from wsss_jax.polygons.shapes import Shape
from wsss_jax.report.colors import make_colorblind_palette

_WHITE = (255, 255, 255)
_SHOWN = 5  # unknown labels in a message


def load_classes(spec: str, names: Sequence[str]) -> Dataset:
    """Loads the classes of masks.

    Args:
      spec: a shipped description, a `dataset.json`, or labelme's `labels.txt`, a label in a line;
        its `__ignore__` and `_background_` are no classes.
      names: of the classes, instead of `spec`. As for `labels.txt`, what is excluded is not white
        background, and the colors are those that all eyes tell apart.

    Raises:
      InputError: neither or both are given, or they cannot be read.
    """
    if bool(spec) == bool(names):
        raise InputError(
            f"config.dataset and config.classes are {'both' if spec else 'not'} set; name the "
            "classes by one of them, such as --config.dataset=data/mine/dataset.json"
        )
    if names:
        return _describe_classes(names, "config.classes")
    if not spec.lower().endswith(".txt"):
        return load_dataset(spec, "")
    path = Path(spec)
    check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text ({error}); save it as UTF-8") from error
    labels = [line.strip() for line in lines if line.strip()]
    special = (labelme.IGNORE, labelme.BACKGROUND)
    return _describe_classes([label for label in labels if label not in special], spec)


def _describe_classes(names: Sequence[str], source: str) -> Dataset:
    palette = (*make_colorblind_palette(len(names)), _WHITE)
    fields = {
        "name": "drawn",
        "classes": list(names),
        "palette": [list(color) for color in palette],
        "white": False,
        "label_notation": "spaces",
        "present_share": 0.05,
    }
    return make_dataset(fields, Path(source))


class Labels(NamedTuple):
    """What labels mean.

    Attributes:
      values: mask value by label.
      ignored: labels of shapes that count as not drawn.
      classes: names of the classes, for messages.
    """

    values: Mapping[str, int]
    ignored: frozenset[str]
    classes: Sequence[str]

    def choose_values(self, shapes: Sequence[Shape], path: Path) -> list[tuple[Shape, int]]:
        """Chooses the mask values of shapes; leaves out those that are ignored.

        Raises:
          InputError: names the labels that are unknown, and those that there are.
        """
        unknown: dict[str, str] = {}  # label -> the first shape that has it
        for shape in shapes:
            if shape.label not in self.values and shape.label not in self.ignored:
                unknown.setdefault(shape.label, shape.where)
        if unknown:
            label = next(iter(unknown))
            known = {each.casefold(): each for each in self.classes}
            near = difflib.get_close_matches(label.casefold(), known, n=1)
            example = known[near[0]] if near else self.classes[0]
            where = [*unknown.values()][:_SHOWN]
            if len(unknown) > _SHOWN:
                where.append(f"{len(unknown) - _SHOWN} more labels")
            raise InputError(
                f"{path}: no class has the label of {', '.join(where)}; there are "
                f"{', '.join(self.classes)}. Say which "
                f'it is, such as --config.labels="(({label!r}, {example!r}),)", or leave it out: '
                f'--config.ignored="({label!r},)"'
            )
        return [(s, self.values[s.label]) for s in shapes if s.label in self.values]


def make_labels(
    dataset: Dataset,
    labels: Sequence[Sequence[str]],
    ignored: Sequence[str],
    background: int,
) -> Labels:
    """Makes the table of what labels mean.

    Classes are called by their names. labelme's `__ignore__` and QuPath's `Ignore*` are excluded,
    `_background_` is what pixels without shape are.

    Args:
      dataset: of the classes.
      labels: further pairs of label and class; an empty class is excluded.
      ignored: labels of shapes that count as not drawn.
      background: mask value of pixels without shape.

    Raises:
      InputError: a class that does not exist, or a label that would mean two things.
    """
    values = {labelme.IGNORE: dataset.excluded, geojson.IGNORE: dataset.excluded}
    values[labelme.BACKGROUND] = background
    values |= {name.strip(): value for value, name in enumerate(dataset.classes)}
    seen: set[str] = set()
    for label, name in ((label.strip(), name) for label, name in labels):
        if label in seen:
            raise InputError(f"config.labels has {label!r} twice; give each label one class")
        seen.add(label)
        values[label] = find_class(name, dataset, "labels") if name else dataset.excluded
    left_out = frozenset(label.strip() for label in ignored)
    if both := sorted(seen & left_out):
        raise InputError(f"config.ignored and config.labels both have {both[0]!r}; remove one")
    values = {label: value for label, value in values.items() if label not in left_out}
    return Labels(values, left_out, dataset.classes)


def find_class(name: str, dataset: Dataset, field: str) -> int:
    """Finds the index of a class that a field names.

    Raises:
      InputError: there is no such class.
    """
    if name not in dataset.classes:
        raise InputError(
            f"config.{field} names the class {name!r}; there are {', '.join(dataset.classes)}"
        )
    return dataset.classes.index(name)
