"""Reading a level of a TIFF file by its tiles or strips, decoded by tifffile."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from data.pictures import lay_on_white
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import encoded
from wsss_jax.slides.reading.blocks import Cache, paste, white
from wsss_jax.slides.reading.opened import CONVERT
from wsss_jax.slides.reading.tiff_headers import (
    COLORS,
    OTHER_COLORS,
    SEPARATE,
    Page,
    check_segment,
    check_table,
    describe,
)


class OtherColors(InputError):
    """8-bit colors that OpenSlide turns into RGB and this module does not."""


def level_reader(
    path: Path, file: tifffile.TiffFile, lock: threading.Lock, member: Page, cache: Cache
) -> Callable[..., np.ndarray]:
    """Reads a level by its tiles or strips, samples interleaved or in planes.

    Args:
      path: of the file, for messages.
      file: that holds the level.
      lock: held while it is read from.
      member: the page of the level.
      cache: of decoded tiles, by (level, row, column).

    Returns:
      what `Opened.read` does, for this level.

    Raises:
      InputError: it is not 8-bit gray, RGB or RGBA, or compressed as nothing known; its tiles or
        strips are too large, or some lie beyond the end of the file.
      OtherColors: likewise.
    """
    page = member.keyframe
    _check_kind(path, page)
    width, height, colors = page.imagewidth, page.imagelength, COLORS[page.photometric]
    if page.is_tiled:
        wide, tall = page.tilewidth, page.tilelength
    else:
        wide, tall = width, min(page.rowsperstrip, height)
    check_segment(path, page, wide, tall)
    across = -(-width // wide)
    step = across * -(-height // tall)
    separate = page.planarconfig == SEPARATE
    alpha = _alpha(page)
    samples = [*range(colors), *([alpha[0]] if alpha else [])]
    # Looked up here: these properties read the file when they are first used.
    offsets, counts, decode = member.dataoffsets, member.databytecounts, _decoder(member)
    check_table(path, member, file.filehandle.size)

    def decoded(index: int) -> np.ndarray | None:
        if not counts[index]:
            return None
        with lock:
            file.filehandle.seek(offsets[index])
            data = file.filehandle.read(counts[index])
        row, column = divmod(index % step, across)
        inside = min(wide, width - column * wide), min(tall, height - row * tall)
        encoded.check_claim(data, page.compression, (wide, tall), inside)
        pixels = decode(data, index)[0][0]
        if page.compression in encoded.JPEG:
            encoded.check_jpeg_tile(data, member.jpegtables, pixels)
        return pixels

    def segment(row: int, column: int) -> np.ndarray:
        index = row * across + column
        if separate:
            planes = [decoded(sample * step + index) for sample in samples]
            if any(plane is None for plane in planes):
                return white(tall, wide)
            pixels = np.concatenate(planes, axis=-1)
        else:
            pixels = decoded(index)
            if pixels is None:
                return white(tall, wide)
            pixels = pixels[..., samples] if len(samples) < pixels.shape[-1] else pixels
        if alpha:
            return _on_white(pixels, multiplied=alpha[1])
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        image = white(height, width)
        for row in range(y // tall, -(-(y + height) // tall)):
            for column in range(x // wide, -(-(x + width) // wide)):
                make = functools.partial(segment, row, column)
                part = cache.get((level, row, column), make)
                paste(image, x, y, part, column * wide, row * tall)
        return image

    return read


def _check_kind(path: Path, page: tifffile.TiffPage) -> None:
    colors = COLORS.get(page.photometric, 0)
    # The decoder of JPEG turns YCbCr into RGB; that of JPEG 2000 does not, and Aperio's (33003) is
    # YCbCr whatever it says.
    other = page.compression == tifffile.COMPRESSION.APERIO_JP2000_YCBC
    if page.photometric == tifffile.PHOTOMETRIC.YCBCR:
        other |= page.compression not in encoded.JPEG
    message = f"{path}: {describe(page)}; save it as one 8-bit RGB picture"
    if page.dtype != np.uint8 or page.bitspersample != 8 or page.imagedepth != 1:
        raise InputError(message)
    if page.photometric in OTHER_COLORS or other:
        raise OtherColors(message)
    if not colors or page.samplesperpixel < colors or (colors == 1 and page.samplesperpixel > 1):
        raise InputError(message)
    if page.compression not in encoded.KNOWN:
        name = getattr(page.compression, "name", page.compression)
        raise InputError(f"{path}: compressed as {name}, which is not read; {CONVERT}")


def _on_white(rgba: np.ndarray, *, multiplied: bool) -> np.ndarray:
    """(h, w, 3) uint8 of (h, w, 4), laid on white."""
    if not multiplied:
        return lay_on_white(Image.fromarray(np.ascontiguousarray(rgba)))
    color = rgba[..., :3].astype(np.uint16)
    return np.minimum(color + (255 - rgba[..., 3:]), 255).astype(np.uint8)


def _decoder(page: Page) -> Callable[..., tuple]:
    decode = page.keyframe.decode
    if page.keyframe.compression in encoded.JPEG:
        return functools.partial(decode, jpegtables=page.jpegtables)
    return decode


def dropped_note(page: tifffile.TiffPage) -> str:
    """The note on samples that are neither color nor transparency."""
    extra = page.samplesperpixel - COLORS[page.photometric]
    unknown = extra - (_alpha(page) is not None)
    if not unknown:
        return ""
    what = "a further sample" if unknown == 1 else f"{unknown} further samples"
    return f"its pixels have {what} besides color, no transparency by its ExtraSamples: left out"


def _alpha(page: tifffile.TiffPage) -> tuple[int, bool] | None:
    """Which sample is the transparency, and whether colors are multiplied with it already."""
    for index, kind in enumerate(page.extrasamples):
        if kind in (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA):
            position = COLORS[page.photometric] + index
            return position, kind == tifffile.EXTRASAMPLE.ASSOCALPHA
    return None
