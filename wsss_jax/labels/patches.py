"""The patches of a folder that people label, and where they lie in their slides."""

import csv
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data import folders
from data.folders import SPELLINGS
from wsss_jax.errors import InputError
from wsss_jax.spreadsheets import unescape_text

TABLE, SLIDES = "patches.csv", "slides.csv"
FOLDER = "patches"


class Place(NamedTuple):
    """Where a patch lies in its slide.

    Attributes:
      slide: its name.
      left, top: upper left corner in level-0 pixels.
      size: side in level-0 pixels.
    """

    slide: str
    left: int
    top: int
    size: int


class PatchFile(NamedTuple):
    """A patch to be labeled.

    Attributes:
      path: of the picture.
      split: "train", "val" or "test".
      place: in its slide, if that is known.
    """

    path: Path
    split: str
    place: Place | None


def find_patches(root: Path) -> dict[str, PatchFile]:
    """Finds the patches: those that `patches.csv` keeps, or all in `patches`, or the training ones.

    Args:
      root: the folder that `configs/sample.py` has filled, one with pictures in `patches`, or a
        data set.

    Returns:
      Name (the path in `root`) -> patch, sorted.

    Raises:
      InputError: there are none, two have the same file name, or the table is damaged.
    """
    if (root / TABLE).is_file():
        found = _read_table(root)
    elif (root / FOLDER).is_dir():
        paths = [root / FOLDER, *(p for p in (root / FOLDER).rglob("*") if p.is_dir())]
        found = {
            path.relative_to(root).as_posix(): PatchFile(path, "train", None)
            for folder in paths
            for path in folders.find_pngs(folder).values()
        }
    else:
        found = _find_training(root)
    if not found:
        raise InputError(
            f"{root}: no patches to label: cut some from slides (configs/sample.py), or put PNG "
            f"files into {root / FOLDER}"
        )
    stems: dict[str, str] = {}
    for name, patch in found.items():
        twin = stems.setdefault(folders.fold_name(patch.path.stem), name)
        if twin != name:
            raise InputError(f"{root}: {twin} and {name} have the same file name: rename one")
    return dict(sorted(found.items()))


def _find_training(root: Path) -> dict[str, PatchFile]:
    if not folders.has_split(root, "train"):
        return {}
    for spelling in SPELLINGS["train"]:
        for folder in (root / spelling / "img", root / spelling):
            if folder.is_dir() and (pngs := folders.find_pngs(folder)):
                return {
                    path.relative_to(root).as_posix(): PatchFile(path, "train", None)
                    for path in pngs.values()
                }
    return {}


def _read_table(root: Path) -> dict[str, PatchFile]:
    """Reads the patches that a table keeps, whose pictures must be there."""
    table = root / TABLE
    found = {}
    for number, row in read_rows(table):
        try:
            if row["kept"] != "1":
                continue
            place = Place(row["slide"], *(int(row[name]) for name in ("left", "top", "size0")))
            name, split = row["patch"], row["split"]
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{table}: line {number} lacks a column or a number: {error}; let "
                "configs/sample.py write it again"
            ) from error
        path = root / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"{table}: line {number}: {name} is not in {root}")
        if split not in SPELLINGS:
            raise InputError(
                f"{table}: line {number}: the split {split!r} is none of {', '.join(SPELLINGS)}"
            )
        if not path.is_file():
            raise InputError(f"{path}: no such file, but {table} keeps it: sample again")
        found[name] = PatchFile(path, split, place)
    return found


def read_slide_paths(root: Path) -> dict[str, Path]:
    """Reads where the slides of the patches are, by name; empty without `slides.csv`."""
    table = root / SLIDES
    if not table.is_file():
        return {}
    return {row["slide"]: Path(row["file"]) for _, row in read_rows(table) if row.get("file")}


def read_rows(table: Path) -> list[tuple[int, Mapping[str, str]]]:
    """Reads a CSV file: number of the line and row by column.

    Raises:
      InputError: it is no UTF-8 text, or a row has another number of cells than the first.
    """
    rows: list[tuple[int, Mapping[str, str]]] = []
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{table}: line {reader.line_num} has another number of cells than the "
                        "first line: correct it"
                    )
                rows.append((reader.line_num, {c: unescape_text(t) for c, t in row.items()}))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"{table}: line {reader.line_num + 1} cannot be read: {error}; save it as CSV in "
                "UTF-8"
            ) from error
    return rows
