"""A data set's folder: finding its patches, reading, writing and checking their PNG files."""

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from data.dataset import Dataset, parse_label
from wsss_jax.errors import InputError
from wsss_jax.files import UNFINISHED
from wsss_jax.patch_records import PatchRecord

Split = Literal["train", "val", "test"]
SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "1.training"),
    "val": ("val", "valid", "validation", "2.validation"),
    "test": ("test", "testing", "3.testing"),
}
IMAGE_MODES = ("RGB", "RGBA", "L", "P")
CHECK_THREADS = 16
# What Pillow raises on a PNG that is truncated, has a wrong checksum or is no PNG at all.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


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
    if (folder / "img").is_dir():
        folder = folder / "img"
    return [Patch(path.stem, path, None, parse_label(path.name, dataset)) for path in _pngs(folder)]


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
    images = {path.stem: path for path in _pngs(folder / "img")}
    masks = {path.stem: path for path in _pngs(folder / "mask")}
    _refuse_missing(folder / "img", "masks", sorted(images.keys() - masks.keys()), folder / "mask")
    _refuse_missing(folder / "mask", "images", sorted(masks.keys() - images.keys()), folder / "img")
    return [Patch(stem, path, masks[stem], None) for stem, path in images.items()]


def has_split(root: str | Path, split: Split) -> bool:
    """Whether the data set has that split, under any of its spellings."""
    return any((Path(root) / name).is_dir() for name in SPELLINGS[split])


def has_masks(root: str | Path, split: Split) -> bool:
    """Whether the data set has true masks for a split."""
    return has_split(root, split) and (_split_folder(Path(root), split) / "mask").is_dir()


def masks_for(patches: Sequence[Patch], folder: str | Path) -> list[Patch]:
    """The same patches with `<folder>/<stem>.png` as their masks (pseudo masks of one layer).

    Raises:
        InputError: the folder or masks are missing; further masks in it do not matter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks; make the pseudo masks first")
    present = {path.stem for path in folder.glob("*.png")}
    missing = [patch.stem for patch in patches if patch.stem not in present]
    _refuse_missing("the training patches", "masks", missing, folder)
    return [patch._replace(mask=folder / f"{patch.stem}.png") for patch in patches]


def read_image(path: str | Path, size: int | None) -> np.ndarray:
    """A patch's picture.

    Args:
        size: the side in pixels it must have, or None for any shape.

    Returns:
        (H, W, 3) uint8 RGB; transparency is dropped, grey becomes RGB.

    Raises:
        InputError: missing, damaged, not 8 bits per channel, or of another size.
    """
    with _opened(path) as picture:
        _refuse_mode(path, picture, IMAGE_MODES, "an 8-bit RGB image")
        _refuse_size(path, picture, size)
        return np.array(picture.convert("RGB"))


def read_values(path: str | Path, size: int | None) -> np.ndarray:
    """The (H, W) uint8 values of a palette or grey PNG as they are, whatever they stand for.

    Raises:
        InputError: missing, damaged, in color, or of another size than `size` (if not None).
    """
    with _opened(path) as picture:
        _refuse_mode(path, picture, ("P", "L"), "class indices (a palette or grey PNG)")
        _refuse_size(path, picture, size)
        return np.array(picture)


def read_mask(path: str | Path, dataset: Dataset, size: int | None) -> np.ndarray:
    """A patch's mask: the indices of a palette PNG (not its colors), or a grey PNG's values.

    Args:
        size: the side in pixels it must have, or None for any shape.

    Returns:
        (H, W) uint8 of 0..C, C for excluded.

    Raises:
        InputError: missing, damaged, in color, of another size, or with a value above C.
    """
    mask = read_values(path, size)
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
    """Looks at every file before a run: images by header and PNG checksums, masks decoded.

    Args:
        size: the side in pixels every image and mask must have, or None for any shape; a mask
            must always have its image's shape.

    Returns:
        CRC-32 of the bytes of each patch's files, its image's and then its mask's.

    Raises:
        InputError: names the first three bad files and says how many there are in all.
    """
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        found = list(pool.map(lambda patch: _problem(patch, size, dataset), patches))
    problems = [problem for problem in found if problem is not None]
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(
            f"{len(problems)} of {len(patches)} patches cannot be used: " + " | ".join(problems[:3])
        )
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        return list(pool.map(_checksum, patches))


def patch_records(patches: Sequence[Patch], checksums: Sequence[int]) -> list[PatchRecord]:
    """What a run writes down of its patches; `checksums` are those of `check_patches`."""
    return [
        PatchRecord(patch.stem, " ".join(map(str, patch.label or ())), f"{checksum:08x}")
        for patch, checksum in zip(patches, checksums, strict=True)
    ]


def _checksum(patch: Patch) -> int:
    checksum = 0
    for path in filter(None, (patch.image, patch.mask)):
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return checksum


def _problem(patch: Patch, size: int | None, dataset: Dataset) -> str | None:
    """What is wrong with one patch's files, or None."""
    try:
        with _opened(patch.image) as picture:
            shape = (picture.height, picture.width)
            _refuse_mode(patch.image, picture, IMAGE_MODES, "an 8-bit RGB image")
            _refuse_size(patch.image, picture, size)
            picture.verify()
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


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """`PIL.Image.open` in which Pillow's complaints about the file become `InputError`."""
    try:
        with Image.open(path) as picture:
            yield picture
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; restore it or remove its partner") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "")
        raise InputError(
            f"{path}: cannot be read ({reason}); copy it again from the source or remove it"
        ) from error


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
    found = [root / name for name in SPELLINGS[split] if (root / name).is_dir()]
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


def _pngs(folder: Path) -> list[Path]:
    """The PNG files of a folder by name; hidden ones (macOS leaves `._x.png`) are not patches."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(".png") and not entry.name.startswith(".")
        ]
    if not names:
        raise InputError(f"{folder}: no PNG files; put the patches there")
    return [folder / name for name in sorted(names)]


def _save_png(path: Path, picture: Image.Image) -> None:
    """Fills a hidden temporary file beside `path`, then gives it its name."""
    temporary = path.parent / f"{UNFINISHED}{path.name}.{os.getpid()}.{threading.get_ident()}"
    try:
        picture.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
