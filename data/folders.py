"""The folder of a data set: which patches are in it, and where."""

import functools
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from data import pictures
from data.dataset import Dataset, is_printable, parse_label
from data.patch_files import read_image
from wsss_jax.errors import InputError

Split = Literal["train", "val", "test"]
SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "1.training"),
    "val": ("val", "valid", "validation", "2.validation"),
    "test": ("test", "testing", "3.testing"),
}


class Patch(NamedTuple):
    """One patch of a data set; None where something is unknown."""

    stem: str
    image: Path
    mask: Path | None
    label: tuple[int, ...] | None


def list_labeled_patches(root: str | Path, split: Split, dataset: Dataset) -> list[Patch]:
    """Lists the patches of a split with the labels of their file names, sorted by name; no masks.

    They are in the folder of the split (`train`, `training` or the challenge's `1.training`), or in
    its subfolder `img`.

    Raises:
      InputError: no such folder, an empty one, or a label that cannot be read.
    """
    folder = _find_split_folder(Path(root), split)
    _report_ignored_pictures(folder, has_img=(folder / "img").is_dir())
    files = _list_patch_files(_find_images(folder))
    return [
        Patch(stem, path, None, parse_label(path.name, dataset)) for stem, path in files.items()
    ]


def list_annotated_patches(root: str | Path, split: Split, dataset: Dataset) -> list[Patch]:
    """Lists the patches of a split that has true masks: `img` and `mask` with the same stems.

    The label is None: `derive_label` gets it from the mask where it is needed.

    Raises:
      InputError: a folder is missing or empty, an image has no mask, or a mask no image.
    """
    folder = _find_split_folder(Path(root), split)
    for part in ("img", "mask"):
        if not (folder / part).is_dir():
            raise InputError(
                f"{folder / part}: no such folder; {dataset.name} needs its {split} images in img "
                "and their masks under the same names in mask"
            )
    images, masks = _list_patch_files(folder / "img"), _list_patch_files(folder / "mask")
    _refuse_missing(folder / "img", "masks", sorted(images.keys() - masks.keys()), folder / "mask")
    _refuse_missing(folder / "mask", "images", sorted(masks.keys() - images.keys()), folder / "img")
    return [Patch(stem, path, masks[stem], None) for stem, path in images.items()]


def measure_patch(root: str | Path) -> int:
    """Measures the first training patch: its side in pixels, which all are to have.

    Raises:
      InputError: there is none, or it is not square.
    """
    files = _list_patch_files(_find_images(_find_split_folder(Path(root), "train")))
    path = next(iter(files.values()))
    height, width = read_image(path, None).shape[:2]
    if height != width:
        raise InputError(
            f"{path} is {width}x{height} pixels: patches must be square; cut them, or resize them "
            "by --config.data.resize=True and --config.data.patch_size"
        )
    return height


def has_split(root: str | Path, split: Split) -> bool:
    """Whether the data set has that split, under any of its spellings."""
    return bool(_list_split_folders(Path(root), split))


def list_held_out(root: str | Path) -> list[tuple[Split, Path]]:
    """Lists the patches for validation and test, also those of which no mask is drawn yet."""
    root = Path(root)
    splits: tuple[Split, ...] = ("val", "test")
    return [
        (split, path)
        for split in splits
        for folder in (*_list_split_folders(root, split), root / "undrawn" / split)
        if folder.is_dir()
        for path in find_pngs(_find_images(folder)).values()
    ]


def has_masks(root: str | Path, split: Split) -> bool:
    """Whether the data set has true masks for a split."""
    return has_split(root, split) and (_find_split_folder(Path(root), split) / "mask").is_dir()


def find_masks(patches: Sequence[Patch], folder: str | Path) -> list[Patch]:
    """Returns the patches with the PNG files of a folder that have their stems as masks.

    Raises:
      InputError: the folder or masks are missing; other masks in it do not matter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks; make the pseudo masks first")
    masks = find_pngs(folder)
    missing = [patch.stem for patch in patches if patch.stem not in masks]
    _refuse_missing("the training patches", "masks", missing, folder)
    return [patch._replace(mask=masks[patch.stem]) for patch in patches]


def find_pngs(folder: str | Path) -> dict[str, Path]:
    """Finds the PNG files of a folder, by stem and sorted; ".PNG" counts too.

    Skips hidden files (macOS leaves `._x.png`) and pictures of other types; says once how many of
    these there are.

    Raises:
      InputError: a name with characters that do not print, or two names that differ at most in
        upper and lower case: an output for one would overwrite that of the other.
    """
    pngs: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    for stem, paths in find_pictures(folder).items():
        for path in paths:
            suffix = path.suffix.lower()
            if suffix == ".png":
                pngs.setdefault(stem, []).append(path)
            else:
                others[suffix] += 1
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        _report_once(
            f"{folder}: {counts} skipped, only PNG files are read; save pictures of the data set "
            "as PNG"
        )
    names: dict[str, str] = {}
    for path in itertools.chain(*pngs.values()):
        if not is_printable(path.name):
            raise InputError(
                f"{folder}: the file name {path.name!r} has characters that do not print; rename it"
            )
        twin = names.setdefault(fold_name(path.stem), path.name)
        if twin != path.name:
            raise InputError(
                f"{folder}: {twin} and {path.name} differ only in upper and lower case, or in how "
                "an accent is stored; rename or remove one"
            )
    # Sorted as if all suffixes were in lower case.
    return {stem: pngs[stem][0] for stem in sorted(pngs, key=lambda stem: f"{stem}.png")}


def find_pictures(folder: str | Path) -> dict[str, list[Path]]:
    """Finds the picture files of a folder, of any type, by stem; skips hidden ones."""
    by_stem: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        path = Path(folder, name)
        if path.suffix.lower() in pictures.SUFFIXES and not name.startswith("."):
            by_stem.setdefault(path.stem, []).append(path)
    return by_stem


def fold_name(stem: str) -> str:
    """Maps names that some file systems do not tell apart to the same text."""
    return unicodedata.normalize("NFC", stem).casefold()


def _refuse_missing(
    source: str | Path, what: str, stems: Sequence[str], folder: str | Path
) -> None:
    if stems:
        names = ", ".join(f"{stem}.png" for stem in stems[:3])
        raise InputError(
            f"{folder}: {len(stems)} {what} of {source} are missing: {names}"
            f"{', ...' if len(stems) > 3 else ''}; add them or remove their partners"
        )


def _find_split_folder(root: Path, split: Split) -> Path:
    """Finds the one folder of a split under any of its spellings."""
    folders = _list_split_folders(root, split)
    if not folders:
        raise InputError(
            f"{root}: no folder of the {split} split; expected one of {', '.join(SPELLINGS[split])}"
        )
    if len(folders) > 1:
        raise InputError(
            f"{root}: both {folders[0].name} and {folders[1].name} could be the {split} split; "
            "remove or rename one"
        )
    return folders[0]


def _list_split_folders(root: Path, split: Split) -> list[Path]:
    if not root.is_dir():
        return []
    names = sorted(name for name in os.listdir(root) if name.lower() in SPELLINGS[split])
    return [root / name for name in names if (root / name).is_dir()]


def _report_ignored_pictures(folder: Path, *, has_img: bool) -> None:
    """Says which pictures are not read, since they are in another folder than the patches."""
    loose = sum(map(len, find_pictures(folder).values())) if has_img else 0
    subfolders = [
        name
        for name in sorted(os.listdir(folder))
        if name not in ("img", "mask") and not name.startswith(".") and (folder / name).is_dir()
    ]
    deeper = [name for name in subfolders if find_pictures(folder / name)]
    if loose:
        _report_once(f"{folder}: {loose} pictures beside img are skipped; move them into it")
    if deeper:
        _report_once(
            f"{folder}: pictures in {', '.join(deeper[:3])}{', ...' if len(deeper) > 3 else ''} "
            "are skipped; move them to the other patches"
        )


def _find_images(folder: Path) -> Path:
    """Finds where the patches of the folder of a split are."""
    return folder / "img" if (folder / "img").is_dir() else folder


def _list_patch_files(folder: Path) -> dict[str, Path]:
    """Lists the PNG files as `find_pngs` does, of a folder that must have some."""
    pngs = find_pngs(folder)
    if not pngs:
        raise InputError(f"{folder}: no PNG files; put the patches there")
    return pngs


@functools.cache
def _report_once(text: str) -> None:
    tqdm.write(text)
