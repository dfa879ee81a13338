"""Where a slide has tissue: found by color on its overview, or given as a mask image."""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import ExifTags

from data.pictures import open_picture, turn_upright
from wsss_jax.errors import InputError

# Saturation (0..255) of glass stays below the first, that of pale stroma above the second. Otsu's
# threshold is held between them: on glass alone it would split noise, on tissue alone the tissue.
_OTSU_LIMITS = (10, 25)
_SPECK = 16  # pixels of the overview; what is smaller at its border is noise
_DARKEST = 30  # largest channel; below it saturation is noise: frames, and what was not scanned


def detect(
    overview: np.ndarray,
    mpp: float,
    *,
    threshold: float | Literal["otsu"],
    closing: float,
    min_tissue: float,
    min_hole: float,
) -> np.ndarray:
    """Tells stained tissue from glass by its saturation.

    Pen marks are saturated and count as tissue, and so does stained dirt above `min_tissue`; fat
    and lumina wider than `min_hole` count as glass. Give a mask (`from_file`) where that matters.

    Args:
      overview: (h, w, 3) uint8 RGB of the whole slide.
      mpp: micrometers per pixel of it.
      threshold: least saturation of tissue as HSV has it, 0..255, or "otsu" to choose it by slide.
      closing: radius in micrometers; narrower gaps in tissue are closed.
      min_tissue: square micrometers; smaller pieces of tissue are dropped.
      min_hole: square micrometers; smaller pieces of glass become tissue, unless they touch the
        border of the slide: those are no holes.

    Returns:
      (h, w) bool, True where there is tissue.

    Raises:
      InputError: `threshold` is neither "otsu" nor a number from 0 to 255.
    """
    if threshold != "otsu" and (isinstance(threshold, str) or not 0 <= threshold <= 255):
        raise InputError(f"tissue threshold {threshold!r}: set 'otsu' or a saturation of 0 to 255")
    _, saturation, value = cv2.split(cv2.cvtColor(cv2.medianBlur(overview, 3), cv2.COLOR_RGB2HSV))
    if threshold == "otsu":
        found, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        threshold = min(max(found, _OTSU_LIMITS[0]), _OTSU_LIMITS[1])
    tissue = _closed((saturation > threshold) & (value > _DARKEST), round(closing / mpp))
    tissue = ~_without_small(~tissue, min_hole / mpp**2, connectivity=4, keep_border=True)
    return _without_small(tissue, min_tissue / mpp**2, connectivity=8)


def _closed(mask: np.ndarray, radius: int) -> np.ndarray:
    side = 2 * radius + 1
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # Glass around it, or a gap between tissue and the border would be closed as well.
    padded = np.pad(mask, radius).astype(np.uint8)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disk)
    return closed[radius : radius + mask.shape[0], radius : radius + mask.shape[1]] > 0


def _without_small(
    mask: np.ndarray, area: float, connectivity: int, *, keep_border: bool = False
) -> np.ndarray:
    """`mask` without its components of less than `area` pixels.

    With `keep_border` those at the border of the image, which go on beyond it, are dropped only if
    they are noise.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=connectivity
    )
    keep = stats[:, cv2.CC_STAT_AREA] >= area
    if keep_border:
        for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            keep[border] |= stats[border, cv2.CC_STAT_AREA] >= _SPECK
    keep[0] = False  # what is not in the mask
    return keep[labels]


def from_file(path: Path) -> np.ndarray:
    """Reads a mask image, at any size; what is not zero is tissue.

    Transparency does not count, nor do a palette's colors: its indices do.

    Args:
      path: a PNG, JPEG or TIFF, whatever its name ends in. PNG and JPEG are shown turned if their
        EXIF says so, as slides of these formats are; a TIFF that wants to be turned is refused, as
        viewers do not turn slides of this format.

    Returns:
      (h, w) bool.

    Raises:
      InputError: no such file, not an image, color of 16 bits, over 178 million pixels, or a TIFF
        that wants to be turned.
    """
    if not path.exists():
        raise InputError(f"{path}: no such tissue mask; correct the path")
    with open_picture(path, ("PNG", "JPEG", "TIFF")) as picture:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        if picture.format == "TIFF" and orientation in range(2, 9):
            raise InputError(
                f"{path}: its Orientation tag ({orientation}) turns it, which viewers do not do to "
                "slides; save it without the tag, as the slide is stored"
            )
        bands = picture.getbands()
        values = np.asarray(turn_upright(picture))
    opaque = len(bands) - ("A" in bands)
    return values > 0 if values.ndim == 2 else (values[..., :opaque] > 0).any(axis=-1)


class Tissue:
    """A tissue mask stretched over a slide or a part of it: a working pixel has the nearest value.

    Keeps nothing of the slide's size but one index for each row and column.
    """

    def __init__(
        self,
        mask: np.ndarray,
        width: int,
        height: int,
        area: tuple[float, float, float, float] | None = None,
    ):
        """Stretches a mask over working pixels.

        Args:
          mask: (h, w) bool.
          width, height: of the slide in working pixels.
          area: left, top, width, height of what the mask covers, in working pixels; around it
            there is no tissue. None: the whole slide.
        """
        if area is None:
            rows, columns = _nearest(mask.shape[0], height), _nearest(mask.shape[1], width)
        else:
            left, top, wide, tall = area
            mask = np.pad(mask, 1)  # the border stands for all that is around the area
            rows = _nearest_within(mask.shape[0] - 2, height, top, tall)
            columns = _nearest_within(mask.shape[1] - 2, width, left, wide)
        # Every row and column that is kept of the mask is that of some working pixel.
        kept_rows, self._rows = np.unique(rows, return_inverse=True)
        kept_columns, self._columns = np.unique(columns, return_inverse=True)
        self._mask = mask = mask[np.ix_(kept_rows, kept_columns)]
        self._width, self._height = width, height
        self._integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
        self._integral[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)

    @classmethod
    def everything(cls, width: int, height: int) -> "Tissue":
        """A slide that is tissue all over."""
        return cls(np.ones((1, 1), bool), width, height)

    def any(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether a region, in working pixels, has a pixel of tissue; outside there is none."""
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, self._width), min(y + height, self._height)
        if left >= right or top >= bottom:
            return False
        x0, x1 = self._columns[left], self._columns[right - 1] + 1
        y0, y1 = self._rows[top], self._rows[bottom - 1] + 1
        sums = self._integral
        return bool(sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0])

    def pixels(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """(height, width) bool of a region in working pixels, False outside the slide."""
        found = np.zeros((height, width), bool)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, self._width), min(y + height, self._height)
        if left < right and top < bottom:
            rows, columns = self._rows[top:bottom], self._columns[left:right]
            found[top - y : bottom - y, left - x : right - x] = self._mask[np.ix_(rows, columns)]
        return found

    def area(self) -> int:
        """The number of working pixels of tissue."""
        tall = np.bincount(self._rows, minlength=self._mask.shape[0])
        wide = np.bincount(self._columns, minlength=self._mask.shape[1])
        return int(tall @ (self._mask @ wide))


def _nearest(size: int, length: int) -> np.ndarray:
    """(length,) int: the index, of `size`, that each of `length` pixels falls on."""
    return (2 * np.arange(length, dtype=np.int64) + 1) * size // (2 * length)


def _nearest_within(size: int, length: int, start: float, extent: float) -> np.ndarray:
    """(length,) int: 1 + the index, of `size`, in an interval; 0 before it, size + 1 after it."""
    position = (np.arange(length) + 0.5 - start) / extent
    return (1 + np.floor(position * size)).clip(0, size + 1).astype(np.int64)
