"""Labels that are there already, to be taken in as those of one annotator."""

from collections.abc import Mapping
from pathlib import Path

from data.dataset import Dataset, parse_label
from wsss_jax.errors import InputError
from wsss_jax.labels.patches import PatchFile
from wsss_jax.labels.replay import CANNOT_TELL
from wsss_jax.spreadsheets import read_rows

NAMES = "names"  # instead of a CSV file: the labels are in the names of the patches
_PATCH, _LABEL = "patch", "label"


def read_labels(source: str, patches: Mapping[str, PatchFile], dataset: Dataset) -> dict[str, str]:
    """Reads labels of patches.

    Args:
      source: "names", or a CSV file with the column `patch` (its path in the folder, or the name of
        its file) and either a column for each class, with 0 and 1, or the column `label`, such as
        "0110". Empty cells are no answer, "?" is "cannot tell".
      patches: by name.
      dataset: whose classes they are.

    Returns:
      Name of the patch -> label such as "0110", of those that have one.

    Raises:
      InputError: a label or patch that is none, or two different labels of one patch.
    """
    if source == NAMES:
        return {
            name: "".join(map(str, parse_label(patch.path.name, dataset)))
            for name, patch in patches.items()
        }
    table = Path(source)
    if not table.is_file():
        raise InputError(f"{table}: no such file; name a CSV, or {NAMES!r} for names of files")
    by_file = {patch.path.name: name for name, patch in patches.items()}
    labels: dict[str, str] = {}
    columns, rows = read_rows(table)
    if _PATCH not in columns:
        raise InputError(f"{table} has no column {_PATCH!r}: name the patches there")
    for line, row in rows:
        place = f"{table}:{line}"
        given = row[_PATCH]
        name = given if given in patches else by_file.get(Path(given).name, "")
        if not name:
            raise InputError(f"{place}: there is no patch {given}: remove the line")
        label = _read_label(row, dataset, place)
        if label and labels.setdefault(name, label) != label:
            raise InputError(f"{place}: {given} has another label above: keep one of the two")
    return labels


def _read_label(row: Mapping[str, str], dataset: Dataset, place: str) -> str:
    """Reads the label of a line; empty if it has none."""
    if _LABEL in row:
        label = row[_LABEL].strip()
        shown = f"the label {label!r}"
    elif missing := [name for name in dataset.classes if name not in row]:
        raise InputError(
            f"{place}: no column {_LABEL!r}, and none for the class {missing[0]}: add one"
        )
    else:
        cells = [row[name].strip() for name in dataset.classes]
        label = CANNOT_TELL if CANNOT_TELL in cells else "".join(cells)
        shown = f"the label {cells}"
    if label in ("", CANNOT_TELL):
        return label
    if len(label) != dataset.num_classes or label.strip("01"):
        raise InputError(f"{place}: {shown} is not {dataset.num_classes} of 0 and 1")
    return label
