"""Opens picture files; all other modules open them here.

The name of a file says nothing about its content. Only the formats that the caller expects are
tried: Pillow knows dozens, and some of its decoders start other programs (Ghostscript, for a
PostScript file with the name `.png`).
"""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from data import png
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular

SUFFIXES = (  # of picture files of any format
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp"),
    *(".jp2", ".j2k", ".jxl", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pnm", ".tga", ".psd"),
)
PATCH_FORMATS = ("PNG",)
REGION_FORMATS = ("PNG", "JPEG", "TIFF")
_BITS_PER_SAMPLE, _SUBFILE_TYPE = 258, 254  # tags of TIFF
_SMALLER_COPY = 1  # bit of `_SUBFILE_TYPE`
_SAMPLE_FORMAT, _SIGNED = 339, 2
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
_JPEG_PIXELS = 1024  # at most, per byte; the largest blocks, 16 x 16 pixels, take about six bits
# What Pillow raises for a file that is truncated, has a wrong checksum or another format; the
# second line for TIFF and EXIF tags with impossible values.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error),
    *(TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
)


@contextmanager
def open_picture(
    path: str | Path, formats: tuple[str, ...], *, checked: bool = False
) -> Iterator[Image.Image]:
    """Opens a picture in one of `formats`; errors of Pillow inside the block become `InputError`.

    Its `info["bits"]` says how many bits per channel the file has.

    Args:
      path: of a regular file; pipes and devices are not opened.
      formats: names of Pillow's decoders ("PNG", "JPEG", "TIFF"); no others are tried.
      checked: skips the check of a PNG for damage, which was made before.

    Yields:
      The picture.

    Raises:
      InputError: no such file, not a regular one, another format, damaged, several pictures,
        color with over 8 bits per channel, or over 178 million pixels.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures, invalid EXIF; damage is an error
            with Image.open(path, formats=formats) as picture:
                if picture.format == "PNG":
                    _check_png(picture, path, checked)
                elif isinstance(picture, TiffImageFile):
                    _check_tiff(picture, path)
                else:
                    _refuse_impossible_jpeg(picture, path)
                    picture.info["bits"] = 8
                _refuse_several(picture, path)
                _refuse_deep_colors(picture, path)
                yield picture
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: too many pixels ({_format_error(error, path)}); make it smaller"
        ) from error
    except DAMAGE as error:
        raise InputError(
            f"{path}: damaged, or not a {' or '.join(formats)} picture "
            f"({_format_error(error, path)}); copy it again from the source, save it as "
            f"{formats[0]}, or remove it"
        ) from error


def _check_png(picture: Image.Image, path: str | Path, checked: bool) -> None:
    """Sets `info["bits"]` and checks the file for damage unless it was `checked` before."""
    with open(path, "rb") as file:
        bits = png.read_header(file).bits
        if not checked:
            png.check_pixels(file)
    picture.info["bits"] = bits
    if picture.mode == "L" and bits < 8 and "transparency" in picture.info:
        # Pillow scales the gray values to 0..255, but not the transparent one.
        picture.info["transparency"] *= 255 // (2**bits - 1)


def _refuse_impossible_jpeg(picture: Image.Image, path: str | Path) -> None:
    """Refuses a size that would take much memory before Pillow notices the missing pixels."""
    if picture.width * picture.height > _JPEG_PIXELS * os.stat(path).st_size:
        raise ValueError(f"{picture.width} x {picture.height} pixels do not fit in the file")


def _check_tiff(picture: TiffImageFile, path: str | Path) -> None:
    """Sets `info["bits"]` and refuses pixels that Pillow would read from the wrong place."""
    tags, size = picture.tag_v2, os.stat(path).st_size
    picture.info["bits"] = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if any(kind == _SIGNED for kind in tags.get(_SAMPLE_FORMAT, ())):
        raise ValueError("its colors are signed numbers")
    for offsets, counts in ((_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_OFFSETS, _TILE_BYTES)):
        starts, lengths = (_as_tuple(tags.get(tag, ())) for tag in (offsets, counts))
        if any(start <= 0 or start >= size for start in starts) or 0 in lengths:
            raise ValueError("some of its pixels are not in the file")


def _as_tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _refuse_several(picture: Image.Image, path: str | Path) -> None:
    """Refuses animations and several pages; smaller copies of the first page do not count."""
    count = getattr(picture, "n_frames", 1)
    if isinstance(picture, TiffImageFile):
        for index in range(1, count):
            picture.seek(index)
            count -= picture.tag_v2.get(_SUBFILE_TYPE, 0) & _SMALLER_COPY
        picture.seek(0)
    if count > 1 and picture.format != "MPO":  # cameras add thumbnails or depth to a JPEG
        raise InputError(f"{path}: {count} pictures in one file; save the one to use by itself")


def _refuse_deep_colors(picture: Image.Image, path: str | Path) -> None:
    """Refuses colors that Pillow would silently cut to the upper 8 bits."""
    bits = picture.info["bits"]
    if bits > 8 and picture.mode[0] not in "IF":
        raise InputError(f"{path}: {bits} bits per channel; save it with 8")


def turn_upright(picture: Image.Image) -> Image.Image:
    """Turns a picture, in place, by its EXIF orientation, as viewers show it."""
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def lay_on_white(picture: Image.Image) -> np.ndarray:
    """Returns (H, W, 3) uint8 RGB, transparent parts on white, as a slide lies on white light."""
    if not picture.has_transparency_data:
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    picture = picture.convert("RGBA")
    image = Image.new("RGB", picture.size, "white")
    image.paste(picture, mask=picture.getchannel("A"))
    return np.array(image)


def _format_error(error: Exception, path: str | Path) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(f" {str(path)!r}", "")
