"""A data set's folder: finding its patches, reading, writing and checking their PNG files."""

import functools
import itertools
import os
import threading
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import pictures
from data.dataset import Dataset, is_printable, parse_label
from wsss_jax.errors import InputError
from wsss_jax.files import UNFINISHED, check_regular
from wsss_jax.patch_records import PatchRecord

Split = Literal["train", "val", "test"]
SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "1.training"),
    "val": ("val", "valid", "validation", "2.validation"),
    "test": ("test", "testing", "3.testing"),
}
IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P")
VALUE_MODES = ("P", "L", "1")
CHECK_THREADS = 16


class Patch(NamedTuple):
    """One patch of a data set; what is None is not known for it."""

    stem: str
    image: Path
    mask: Path | None
    label: tuple[int, ...] | None


def labelled_patches(root: str | Path, split: Split, dataset: Dataset) -> list[Patch]:
    """The patches of a split with the label of their file names, sorted by name; no masks.

    They lie in the split's folder (`train`, `training` or the challenge's `1.training`), or in
    `img` below it.

    Raises:
        InputError: no such folder, an empty one, or a label that cannot be read.
    """
    folder = _split_folder(Path(root), split)
    has_img = (folder / "img").is_dir()
    _say_what_lies_beside(folder, has_img=has_img)
    if has_img:
        folder = folder / "img"
    return [
        Patch(stem, path, None, parse_label(path.name, dataset))
        for stem, path in _patch_files(folder).items()
    ]


def annotated_patches(root: str | Path, split: Split, dataset: Dataset) -> list[Patch]:
    """The patches of a split that has true masks: `img` and `mask` with the same stems.

    The label is None, whatever the split: `label_from_mask` derives it where it is needed.

    Raises:
        InputError: a folder is missing or empty, an image has no mask, or a mask no image.
    """
    folder = _split_folder(Path(root), split)
    for part in ("img", "mask"):
        if not (folder / part).is_dir():
            raise InputError(
                f"{folder / part}: no such folder; {dataset.name} needs its {split} images in img "
                "and their masks under the same names in mask"
            )
    images, masks = _patch_files(folder / "img"), _patch_files(folder / "mask")
    _refuse_missing(folder / "img", "masks", sorted(images.keys() - masks.keys()), folder / "mask")
    _refuse_missing(folder / "mask", "images", sorted(masks.keys() - images.keys()), folder / "img")
    return [Patch(stem, path, masks[stem], None) for stem, path in images.items()]


def has_split(root: str | Path, split: Split) -> bool:
    """Whether the data set has that split, under any of its spellings."""
    return bool(_split_folders(Path(root), split))


def has_masks(root: str | Path, split: Split) -> bool:
    """Whether the data set has true masks for a split."""
    return has_split(root, split) and (_split_folder(Path(root), split) / "mask").is_dir()


def masks_for(patches: Sequence[Patch], folder: str | Path) -> list[Patch]:
    """The same patches with the PNG of their stem in a folder as masks (of one layer).

    Raises:
        InputError: the folder or masks are missing; further masks in it do not matter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks; make the pseudo masks first")
    masks = find_pngs(folder)
    missing = [patch.stem for patch in patches if patch.stem not in masks]
    _refuse_missing("the training patches", "masks", missing, folder)
    return [patch._replace(mask=masks[patch.stem]) for patch in patches]


def find_pngs(folder: str | Path) -> dict[str, Path]:
    """The PNG files of a folder by their stems, sorted; their ending may be in capitals.

    Hidden files (macOS leaves `._x.png`) are passed over, and so are pictures of other types, of
    which it says once how many there are.

    Raises:
        InputError: a name with characters that do not print, or two names that differ at most in
            upper and lower case: what is written for one would replace what is for the other.
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
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        _say_once(
            f"{folder}: {listed} passed over, only PNG files are read; save as PNG what belongs to "
            "the data set"
        )
    names: dict[str, str] = {}
    for path in itertools.chain(*pngs.values()):
        if not is_printable(path.name):
            raise InputError(
                f"{folder}: the file name {path.name!r} has characters that do not print; rename it"
            )
        twin = names.setdefault(plain_name(path.stem), path.name)
        if twin != path.name:
            raise InputError(
                f"{folder}: {twin} and {path.name} differ only in upper and lower case, or in how "
                "an accent is stored; rename or remove one"
            )
    # In the order that they have with all endings in lower case.
    return {stem: pngs[stem][0] for stem in sorted(pngs, key=lambda stem: f"{stem}.png")}


def find_pictures(folder: str | Path) -> dict[str, list[Path]]:
    """The picture files of a folder, of any type, by their stems; hidden ones are passed over."""
    found: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        path = Path(folder, name)
        if path.suffix.lower() in pictures.SUFFIXES and not name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found


def plain_name(stem: str) -> str:
    """What is the same of two names that some file systems take for one."""
    return unicodedata.normalize("NFC", stem).casefold()


def read_image(path: str | Path, size: int | None, *, checked: bool = False) -> np.ndarray:
    """A patch's picture.

    Args:
        path: of a PNG file.
        size: the side in pixels it must have, or None for any shape.
        checked: `check_patches` has found it whole, which need not be done again.

    Returns:
        (H, W, 3) uint8 RGB as viewers show it: upright, transparent parts on white, grey as RGB.

    Raises:
        InputError: missing, damaged, not 8 bits per channel, or of another size.
    """
    return read_region(path, size, pictures.PATCH_FORMATS, checked=checked)


def read_region(
    path: str | Path,
    size: int | None = None,
    formats: Sequence[str] = pictures.REGION_FORMATS,
    *,
    checked: bool = False,
) -> np.ndarray:
    """A picture of one of `formats`; everything else as of `read_image`."""
    with pictures.open_picture(path, formats, checked=checked) as picture:
        _refuse_mode(path, picture, IMAGE_MODES, "an 8-bit RGB image")
        _refuse_size(path, picture, size)
        return pictures.lay_on_white(pictures.turn_upright(picture))


def read_values(path: str | Path, size: int | None, *, checked: bool = False) -> np.ndarray:
    """The (H, W) uint8 values of a palette or grey PNG as they are, whatever they stand for.

    Raises:
        InputError: missing, damaged, in color, or of another size than `size` (if not None).
    """
    with pictures.open_picture(path, pictures.PATCH_FORMATS, checked=checked) as picture:
        _refuse_mode(path, picture, VALUE_MODES, "class indices (a palette or grey PNG)")
        _refuse_size(path, picture, size)
        values = np.array(pictures.turn_upright(picture), np.uint8)
        bits = picture.info["bits"]
        # Pillow spreads grey values of 2 and 4 bits over 0..255.
        return values // (255 // (2**bits - 1)) if picture.mode == "L" and bits < 8 else values


def read_mask(
    path: str | Path, dataset: Dataset, size: int | None, *, checked: bool = False
) -> np.ndarray:
    """A patch's mask: the indices of a palette PNG (not its colors), or a grey PNG's values.

    Args:
        path: of a PNG file.
        dataset: whose classes the values are.
        size: the side in pixels it must have, or None for any shape.
        checked: as of `read_image`.

    Returns:
        (H, W) uint8 of 0..C, C for excluded.

    Raises:
        InputError: missing, damaged, in color, of another size, or with a value above C.
    """
    mask = read_values(path, size, checked=checked)
    highest = int(mask.max())
    if highest > dataset.excluded:
        raise InputError(
            f"{path}: mask value {highest} is outside 0..{dataset.excluded} "
            f"({dataset.num_classes} classes of {dataset.name} and {dataset.excluded} for "
            "excluded); renumber the mask or name the right data set"
        )
    return mask


def write_mask(path: str | Path, mask: np.ndarray, dataset: Dataset) -> None:
    """Writes a mask as a palette PNG in the data set's colors; the file appears complete or not.

    Args:
        mask: (H, W) uint8 of 0..C.

    Raises:
        ValueError: another shape or dtype, or a value above C.
    """
    path = Path(path)
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > dataset.excluded:
        raise ValueError(f"{path}: a mask is (H, W) uint8 of 0..{dataset.excluded}")
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([value for color in dataset.palette for value in color])
    _save_png(path, picture)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 RGB image as PNG; the file appears complete or not."""
    _save_png(Path(path), Image.fromarray(image, mode="RGB"))


def check_patches(patches: Sequence[Patch], size: int | None, dataset: Dataset) -> list[int]:
    """Decodes every file before a run.

    Args:
        size: the side in pixels every image and mask must have, or None for any shape; a mask
            must always have its image's shape.

    Returns:
        The `checksums`.

    Raises:
        InputError: names the first three bad files and says how many there are in all.
    """
    _refuse_problems(_mapped(lambda patch: _problem(patch, size, dataset), patches))
    return checksums(patches)


def check_masks(paths: Sequence[Path], size: int, dataset: Dataset) -> tuple[list[int], set[int]]:
    """Decodes masks, as `check_patches` does.

    Returns:
        CRC-32 of the bytes of each file; the values, 0..C, that are in any of them.
    """

    def values(path: Path) -> str | set[int]:
        try:
            return set(np.flatnonzero(np.bincount(read_mask(path, dataset, size).ravel())).tolist())
        except InputError as error:
            return str(error)

    found = _mapped(values, paths)
    _refuse_problems([result if isinstance(result, str) else None for result in found])
    return _mapped(_checksum, paths), set().union(*found)


def checksums(patches: Sequence[Patch]) -> list[int]:
    """CRC-32 of the bytes of each patch's files, its image's and then its mask's."""
    return _mapped(lambda patch: _checksum(patch.image, patch.mask), patches)


def patch_records(patches: Sequence[Patch], of_files: Sequence[int]) -> list[PatchRecord]:
    """What a run writes down of its patches; `of_files` are their `checksums`."""
    return [
        PatchRecord(patch.stem, " ".join(map(str, patch.label or ())), f"{checksum:08x}")
        for patch, checksum in zip(patches, of_files, strict=True)
    ]


def _mapped(function: Callable[[Any], Any], items: Sequence) -> list:
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        return list(pool.map(function, items))


def _checksum(*paths: Path | None) -> int:
    checksum = 0
    for path in filter(None, paths):
        check_regular(path)
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return checksum


def _refuse_problems(found: Sequence[str | None]) -> None:
    problems = [problem for problem in found if problem is not None]
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(
            f"{len(problems)} of {len(found)} patches cannot be used: " + " | ".join(problems[:3])
        )


def _problem(patch: Patch, size: int | None, dataset: Dataset) -> str | None:
    """What is wrong with one patch's files, or None."""
    try:
        shape = read_image(patch.image, size).shape[:2]
        if patch.mask is not None:
            mask_shape = read_mask(patch.mask, dataset, size).shape
            if mask_shape != shape:
                return (
                    f"{patch.mask}: {mask_shape[1]}x{mask_shape[0]} pixels but its image "
                    f"{shape[1]}x{shape[0]}; make both alike"
                )
    except InputError as error:
        return str(error)
    return None


def _refuse_mode(path: str | Path, picture: Image.Image, modes: Sequence[str], what: str) -> None:
    if picture.mode not in modes:
        raise InputError(f"{path}: pixel format {picture.mode}, not {what}; convert it")


def _refuse_size(path: str | Path, picture: Image.Image, size: int | None) -> None:
    if size is not None and picture.size != (size, size):
        raise InputError(
            f"{path}: {picture.width}x{picture.height} pixels, expected {size}x{size}; "
            "prepare the data set at that size or change the patch size of the config"
        )


def _refuse_missing(
    source: str | Path, what: str, stems: Sequence[str], folder: str | Path
) -> None:
    if stems:
        names = ", ".join(f"{stem}.png" for stem in stems[:3])
        raise InputError(
            f"{folder}: {len(stems)} {what} of {source} are missing: {names}"
            f"{', ...' if len(stems) > 3 else ''}; add them or remove their partners"
        )


def _split_folder(root: Path, split: Split) -> Path:
    """The one folder of a split under any of its spellings."""
    found = _split_folders(root, split)
    if not found:
        raise InputError(
            f"{root}: no folder of the {split} split; expected one of {', '.join(SPELLINGS[split])}"
        )
    if len(found) > 1:
        raise InputError(
            f"{root}: both {found[0].name} and {found[1].name} could be the {split} split; "
            "remove or rename one"
        )
    return found[0]


def _split_folders(root: Path, split: Split) -> list[Path]:
    if not root.is_dir():
        return []
    names = sorted(name for name in os.listdir(root) if name.lower() in SPELLINGS[split])
    return [root / name for name in names if (root / name).is_dir()]


def _say_what_lies_beside(folder: Path, *, has_img: bool) -> None:
    """Names pictures that are not read, as they lie in another folder than the patches."""
    loose = sum(map(len, find_pictures(folder).values())) if has_img else 0
    inside = [
        name
        for name in sorted(os.listdir(folder))
        if name not in ("img", "mask") and not name.startswith(".") and (folder / name).is_dir()
    ]
    deeper = [name for name in inside if find_pictures(folder / name)]
    if loose:
        _say_once(f"{folder}: {loose} pictures beside img are passed over; move them into it")
    if deeper:
        _say_once(
            f"{folder}: pictures in {', '.join(deeper[:3])}{', ...' if len(deeper) > 3 else ''} "
            "are passed over; move them beside the others"
        )


def _patch_files(folder: Path) -> dict[str, Path]:
    """`find_pngs` of a folder that must have some."""
    found = find_pngs(folder)
    if not found:
        raise InputError(f"{folder}: no PNG files; put the patches there")
    return found


@functools.cache
def _say_once(text: str) -> None:
    tqdm.write(text)


def _save_png(path: Path, picture: Image.Image) -> None:
    """Fills a hidden temporary file beside `path`, then gives it its name.

    That of the temporary file is short: the name of `path` may be as long as names can be.
    """
    own = f"{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.{threading.get_ident()}"
    temporary = path.parent / f"{UNFINISHED}{own}"
    try:
        picture.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
