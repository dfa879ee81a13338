"""Reading a level of a TIFF file by its tiles or strips, decoded by tifffile."""

import functools
import threading
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from data.pictures import lay_on_white
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import compression
from wsss_jax.slides.reading.cache import Cache, make_white, paste
from wsss_jax.slides.reading.raw_slide import CONVERT
from wsss_jax.slides.reading.tiff_headers import (
    COLORS,
    OTHER_COLORS,
    SEPARATE,
    Page,
    check_segment,
    check_table,
    describe_page,
    get_segment_size,
)

_OVERLAP = 64  # pixels of a level, at most, by which blocks overlap for resampling


class OtherColors(InputError):
    """8-bit colors that OpenSlide turns into RGB and this module does not."""


class LevelReader:
    """Reads a level by its tiles or strips ("segments"), samples interleaved or in planes."""

    def __init__(
        self, path: Path, file: tifffile.TiffFile, lock: threading.Lock, member: Page, cache: Cache
    ):
        """Checks a level and prepares its decoder.

        Args:
          path, file: the file, for messages, and opened.
          lock: held while `file` is read from.
          member: the page of the level.
          cache: of decoded segments, by (level, row, column).

        Raises:
          InputError: the level is not 8-bit gray, RGB or RGBA, or of an unknown compression; its
            segments are too large, or some lie beyond the end of the file.
          OtherColors: colors that OpenSlide may read.
        """
        page = member.keyframe
        _check_kind(path, page)
        self._page, self._handle, self._lock, self._cache = page, file.filehandle, lock, cache
        self._width, self._height = page.imagewidth, page.imagelength
        self._wide, self._tall = get_segment_size(page)
        check_segment(path, page)
        self._across = -(-self._width // self._wide)
        self._per_plane = self._across * -(-self._height // self._tall)
        self._alpha = _find_alpha(page)
        position = [self._alpha[0]] if self._alpha else []
        self._samples = [*range(COLORS[page.photometric]), *position]
        # These properties read the file when they are first used, so they are looked up once here.
        self._offsets, self._counts = member.dataoffsets, member.databytecounts
        self._tables = member.jpegtables
        jpeg = {"jpegtables": self._tables} if page.compression in compression.JPEG else {}
        self._decode = functools.partial(page.decode, **jpeg)
        check_table(path, member, file.filehandle.size)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Reads a region, as `RawSlide.read` does; `level` is the key of the cache.

        Blocks of a slide are read row by row, those beside each other at about the same time. A
        segment that ends well inside of a block, and that the blocks beside it do not need, makes
        room in the cache for those that other blocks need, too: a row of large blocks is more than
        it holds.
        """
        image = make_white(height, width)
        wide, tall = self._wide, self._tall
        left, right, bottom = x + _OVERLAP, x + width - _OVERLAP, y + height - _OVERLAP
        for row in range(y // tall, -(-(y + height) // tall)):
            for column in range(x // wide, -(-(x + width) // wide)):
                make = functools.partial(self._read_segment, row, column)
                is_inside = left <= column * wide and (column + 1) * wide <= right
                is_spent = is_inside and (row + 1) * tall <= bottom
                segment = self._cache.get((level, row, column), make, is_spent=is_spent)
                paste(image, x, y, segment, column * wide, row * tall)
        return image

    def _read_segment(self, row: int, column: int) -> np.ndarray:
        """Reads a segment as RGB on white; it is white if the file left it out."""
        index = row * self._across + column
        count = len(self._samples)
        in_planes = self._page.planarconfig == SEPARATE
        indices = [s * self._per_plane + index for s in self._samples] if in_planes else [index]
        planes = [plane for index in indices if (plane := self._read_data(index)) is not None]
        if len(planes) < len(indices):
            return make_white(self._tall, self._wide)
        pixels = np.concatenate(planes, axis=-1) if in_planes else planes[0]
        pixels = pixels[..., self._samples] if count < pixels.shape[-1] else pixels
        if self._alpha:
            return _lay_on_white(pixels, multiplied=self._alpha[1])
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def _read_data(self, index: int) -> np.ndarray | None:
        """Reads, checks and decodes a segment, (h, w, samples); None if the file left it out."""
        if not self._counts[index]:
            return None
        with self._lock:
            self._handle.seek(self._offsets[index])
            data = self._handle.read(self._counts[index])
        row, column = divmod(index % self._per_plane, self._across)
        size = self._wide, self._tall
        visible = (
            min(self._wide, self._width - column * self._wide),
            min(self._tall, self._height - row * self._tall),
        )
        compression.check_claim(data, self._page.compression, size, visible)
        pixels = self._decode(data, index)[0][0]
        if self._page.compression in compression.JPEG:
            compression.check_jpeg_tile(data, self._tables, pixels)
        return pixels


def _check_kind(path: Path, page: tifffile.TiffPage) -> None:
    colors = COLORS.get(page.photometric, 0)
    # The decoder of JPEG turns YCbCr into RGB; the decoder of JPEG 2000 does not, and Aperio's
    # (33003) is YCbCr whatever the tag says.
    other = page.compression == tifffile.COMPRESSION.APERIO_JP2000_YCBC
    if page.photometric == tifffile.PHOTOMETRIC.YCBCR:
        other |= page.compression not in compression.JPEG
    message = f"{path}: {describe_page(page)}; save it as one 8-bit RGB picture"
    if page.dtype != np.uint8 or page.bitspersample != 8 or page.imagedepth != 1:
        raise InputError(message)
    if page.photometric in OTHER_COLORS or other:
        raise OtherColors(message)
    if not colors or page.samplesperpixel < colors or (colors == 1 and page.samplesperpixel > 1):
        raise InputError(message)
    if page.compression not in compression.KNOWN:
        name = getattr(page.compression, "name", page.compression)
        raise InputError(f"{path}: compressed as {name}, which cannot be read; {CONVERT}")


def _lay_on_white(rgba: np.ndarray, *, multiplied: bool) -> np.ndarray:
    """Lays (h, w, 4) uint8 on white; `multiplied`: the colors are premultiplied with alpha."""
    if not multiplied:
        return lay_on_white(Image.fromarray(np.ascontiguousarray(rgba)))
    color = rgba[..., :3].astype(np.uint16)
    return np.minimum(color + (255 - rgba[..., 3:]), 255).astype(np.uint8)


def note_dropped_samples(page: tifffile.TiffPage) -> str:
    """Returns a note on samples that are neither color nor transparency; "" if there are none."""
    extra = page.samplesperpixel - COLORS[page.photometric]
    unknown = extra - (_find_alpha(page) is not None)
    if not unknown:
        return ""
    what = "a further sample" if unknown == 1 else f"{unknown} further samples"
    return f"its pixels have {what} besides color, no transparency by its ExtraSamples: left out"


def _find_alpha(page: tifffile.TiffPage) -> tuple[int, bool] | None:
    """Finds the sample of transparency, and whether colors are premultiplied with it."""
    for index, kind in enumerate(page.extrasamples):
        if kind in (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA):
            position = COLORS[page.photometric] + index
            return position, kind == tifffile.EXTRASAMPLE.ASSOCALPHA
    return None
