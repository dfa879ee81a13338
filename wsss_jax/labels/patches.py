"""The patches of a folder that people label, and where they lie in their slides."""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data import folders
from data.dataset import strip_label
from data.folders import SPELLINGS
from wsss_jax.errors import InputError
from wsss_jax.sampling import tables

FOLDER = "patches"


class Place(NamedTuple):
    """Where a patch lies in its slide.

    Attributes:
      slide: its name.
      left, top: upper left corner in level-0 pixels.
      size: side in level-0 pixels, which may be no whole number.
    """

    slide: str
    left: int
    top: int
    size: float


class PatchFile(NamedTuple):
    """A patch to be labeled.

    Attributes:
      path: of the picture.
      split: "train", "val" or "test".
      place: in its slide, if that is known.
      mpp: micrometers per pixel, if that is known.
    """

    path: Path
    split: str
    place: Place | None
    mpp: float | None = None


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
    if (root / tables.PATCHES).is_file():
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
        twin = stems.setdefault(folders.fold_name(strip_label(patch.path.stem)), name)
        if twin != name:
            raise InputError(
                f"{root}: {twin} and {name} have the same file name, but for a label: rename one"
            )
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
    table = root / tables.PATCHES
    found = {}
    for row in tables.read_patches(table):
        if not row.kept:
            continue
        path = PurePosixPath(row.patch)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"{table}: {row.patch} is not in {root}: let configs/sample.py write it again"
            )
        if row.split not in SPELLINGS:
            raise InputError(
                f"{table}: the split {row.split!r} of {row.patch} is none of {', '.join(SPELLINGS)}"
            )
        if not (root / path).is_file():
            raise InputError(f"{root / path}: no such file, but {table} keeps it: sample again")
        place = Place(row.slide, row.left, row.top, row.size0)
        found[row.patch] = PatchFile(root / path, row.split, place, row.mpp)
    return found


def read_slide_paths(root: Path) -> dict[str, Path]:
    """Reads where the slides of the patches are, by name; empty without `slides.csv`."""
    table = root / tables.SLIDES
    if not table.is_file():
        return {}
    return {row.slide: Path(row.file) for row in tables.read_slides(table)}
