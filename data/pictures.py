"""Reading picture files: the one place where they are opened, whatever they show.

A file's name says nothing about its content. Only the formats that a field needs are tried: Pillow
knows dozens, and some of its decoders start other programs (Ghostscript, for a PostScript file that
is called `.png`).
"""

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular

PATCH_FORMATS = ("PNG",)
REGION_FORMATS = ("PNG", "JPEG", "TIFF")
# What Pillow raises on a file that is truncated, has a wrong checksum or another format.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)


@contextmanager
def open_picture(path: str | Path, formats: Sequence[str]) -> Iterator[Image.Image]:
    """Opens a picture of one of `formats`; what Pillow raises inside the block becomes a line.

    Args:
        path: of a regular file; pipes and devices are not opened.
        formats: names of Pillow's decoders ("PNG", "JPEG", "TIFF"); no others are tried.

    Raises:
        InputError: no such file, no regular one, another format, damaged, or over 178 million
            pixels.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as picture:
                yield picture
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: more pixels than are read at once ({_reason(error, path)}); make it smaller"
        ) from error
    except DAMAGE as error:
        raise InputError(
            f"{path}: not a whole picture of the format {' or '.join(formats)} "
            f"({_reason(error, path)}); copy it again from the source or remove it"
        ) from error


def turn_upright(picture: Image.Image) -> Image.Image:
    """The picture as viewers show it, turned by its EXIF orientation."""
    return ImageOps.exif_transpose(picture)


def lay_on_white(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB; what is transparent shows white paper, as glass does."""
    if not picture.has_transparency_data:
        return np.array(picture.convert("RGB"))
    picture = picture.convert("RGBA")
    image = Image.new("RGB", picture.size, "white")
    image.paste(picture, mask=picture.getchannel("A"))
    return np.array(image)


def _reason(error: Exception, path: str | Path) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(f" {str(path)!r}", "")
