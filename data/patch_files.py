"""Reading and writing the PNG files of patches: images and masks."""

import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from data import pictures, png
from data.dataset import Dataset
from wsss_jax.errors import InputError
from wsss_jax.files import UNFINISHED

IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P")
VALUE_MODES = ("P", "L", "1")


def read_image(path: str | Path, size: int | None, *, checked: bool = False) -> np.ndarray:
    """Reads the image of a patch.

    Args:
      path: of a PNG file.
      size: side in pixels that it must have, or None for any shape.
      checked: skips the check for damage, which `check_patches` has made before.

    Returns:
      (H, W, 3) uint8 RGB as viewers show it: upright, transparent parts white, gray as RGB.

    Raises:
      InputError: missing, damaged, not 8 bits per channel, or of another size.
    """
    return read_region(path, size, pictures.PATCH_FORMATS, checked=checked)


def read_region(
    path: str | Path,
    size: int | None = None,
    formats: tuple[str, ...] = pictures.REGION_FORMATS,
    *,
    checked: bool = False,
) -> np.ndarray:
    """Reads an image in one of `formats`; otherwise as `read_image`."""
    with pictures.open_picture(path, formats, checked=checked) as picture:
        _refuse_mode(path, picture, IMAGE_MODES, "an 8-bit RGB image")
        _refuse_size(path, picture, size)
        return pictures.lay_on_white(pictures.turn_upright(picture))


def read_values(path: str | Path, size: int | None, *, checked: bool = False) -> np.ndarray:
    """Reads the (H, W) uint8 values of a palette or gray PNG, whatever they mean.

    Raises:
      InputError: missing, damaged, in color, or of another size than `size` (if not None).
    """
    with pictures.open_picture(path, pictures.PATCH_FORMATS, checked=checked) as picture:
        _refuse_mode(path, picture, VALUE_MODES, "class indices (a palette or gray PNG)")
        _refuse_size(path, picture, size)
        values = np.array(pictures.turn_upright(picture), np.uint8)
        bits = picture.info["bits"]
        # Pillow scales gray values of 2 and 4 bits to 0..255.
        return values // (255 // (2**bits - 1)) if picture.mode == "L" and bits < 8 else values


def read_mask(
    path: str | Path, dataset: Dataset, size: int | None, *, checked: bool = False
) -> np.ndarray:
    """Reads a mask: the indices of a palette PNG (not its colors), or the values of a gray one.

    Args:
      path: of a PNG file.
      dataset: whose classes the values are.
      size: side in pixels that it must have, or None for any shape.
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
            "excluded); renumber the mask or choose the right data set"
        )
    return mask


def write_mask(path: str | Path, mask: np.ndarray, dataset: Dataset) -> None:
    """Writes a mask as a palette PNG in the data set's colors; the file is complete or absent.

    Args:
      path: of the file; its folder exists.
      mask: (H, W) uint8 of 0..C.
      dataset: whose classes the values are.

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
    """Writes an (H, W, 3) uint8 RGB image as PNG; the file is complete or absent."""
    _save_png(Path(path), Image.fromarray(image, mode="RGB"))


def write_image_quickly(path: str | Path, image: np.ndarray) -> None:
    """Writes the pixels that `write_image` writes, as other bytes, in a fifth of the time."""
    with _replace(Path(path)) as temporary:
        temporary.write_bytes(png.encode(image))


def _refuse_mode(path: str | Path, picture: Image.Image, modes: Sequence[str], what: str) -> None:
    if picture.mode not in modes:
        raise InputError(f"{path}: pixel format {picture.mode}, not {what}; convert it")


def _refuse_size(path: str | Path, picture: Image.Image, size: int | None) -> None:
    if size is not None and picture.size != (size, size):
        raise InputError(
            f"{path}: {picture.width}x{picture.height} pixels, expected {size}x{size}; set "
            "--config.data.patch_size, or --config.data.resize=True where patches differ in size"
        )


def _save_png(path: Path, picture: Image.Image) -> None:
    with _replace(path) as temporary:
        picture.save(temporary, format="PNG")


@contextmanager
def _replace(path: Path) -> Iterator[Path]:
    """Yields a hidden temporary path beside `path`, which then replaces it.

    `atomic_path` would make a folder for each of thousands of files. The temporary name is short,
    since `path` may have the longest name possible, and differs between threads and processes.
    """
    own = f"{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.{threading.get_ident()}"
    temporary = path.parent / f"{UNFINISHED}{own}"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
