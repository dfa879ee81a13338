"""Resampling a part of a level so that no pixel depends on the part it is computed in."""

from typing import Literal

import numpy as np
from PIL import Image

Method = Literal["area", "triangle"]
_BAND = 32  # rows computed at a time, so that they stay in the processor's cache


def resize(
    source: np.ndarray,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    ratio: tuple[float, float],
    method: Method,
    corner: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Resamples a box of an image.

    "area" gives each pixel the mean of the area that it covers, as scanners reduce the levels of
    their pyramids: the result is alike whether a level exists or has to be made. "triangle" weights
    twice that area by the distance from its center, which is softer. Both enlarge bilinearly, and
    copy an axis whose ratio is 1.

    Args:
      source: (h, w, 3) uint8, with a margin around the box, but along an axis that `is_mean`.
      box: left, top, right, bottom in pixels of `source`; whole numbers where the ratio is 1.
      size: (width, height) of the result.
      ratio: pixels of `source` per pixel of the result, across and down.
      method: how to reduce.
      corner: columns and rows that `source` leaves out of the pixels that the box counts, only
        along an axis that `is_mean`: a sum is rounded by where its pixels are counted from.

    Returns:
      (height, width, 3) uint8.
    """
    left, top, right, bottom = box
    width, height = size
    across, down = (is_mean(along, method) for along in ratio)
    if across or down:
        columns = _Means(left, right, width, corner[0]) if across else None
        rows = _Means(top, bottom, height, corner[1]) if down else None
        source = _average(source, columns, rows)
        left, right = (0, width) if columns else (left, right)
        top, bottom = (0, height) if rows else (top, bottom)
        ratio = (1.0 if columns else ratio[0], 1.0 if rows else ratio[1])
    if ratio == (1, 1):
        x0, y0, x1, y1 = map(round, (left, top, right, bottom))
        return source[y0:y1, x0:x1]
    # With `box`, Pillow's filter sees the margin; its support grows with the ratio (no aliasing).
    image = Image.fromarray(source)
    box = left, top, right, bottom
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box))


def is_mean(ratio: float, method: Method) -> bool:
    """Whether pixels are means along an axis of this ratio, and need no others than they cover."""
    return method == "area" and ratio > 1


class _Means:
    """An axis cut into `count` equal intervals from `start` to `stop`, its pixels from `corner` on.

    Attributes:
      pixels: (count, k) int64, the pixels that an interval covers.
      shares: (count, k) float32, the share of each pixel in the mean; 0 where an interval covers
        fewer pixels.
    """

    def __init__(self, start: float, stop: float, count: int, corner: int):
        edges = start + (stop - start) * np.arange(count + 1) / count
        begin, end = edges[:-1, None], edges[1:, None]
        first = np.floor(begin)
        pixels = first + np.arange(int((np.ceil(end) - first).max()))
        overlap = np.minimum(end, pixels + 1) - np.maximum(begin, pixels)
        self.shares = (overlap.clip(0) / (end - begin)).astype(np.float32)
        self.pixels = np.minimum(pixels, np.ceil(stop) - 1).astype(np.int64) - corner


def _average(source: np.ndarray, columns: _Means | None, rows: _Means | None) -> np.ndarray:
    height = len(rows.pixels) if rows else source.shape[0]
    width = len(columns.pixels) if columns else source.shape[1]
    result = np.empty((height, width, source.shape[2]), np.uint8)
    for y in range(0, height, _BAND):
        band = slice(y, y + _BAND)
        part = source[band]
        if rows:
            shares = rows.shares[band, :, None, None]
            part = sum(source[rows.pixels[band, k]] * shares[:, k] for k in range(shares.shape[1]))
        if columns:
            part = sum(
                part.take(columns.pixels[:, k], axis=1) * columns.shares[:, k, None]
                for k in range(columns.shares.shape[1])
            )
        result[band] = np.rint(part)
    return result
