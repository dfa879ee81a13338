"""Where a slide has tissue: detected by color on its overview, or read from a mask image."""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import ExifTags

from data.pictures import open_picture, turn_upright
from wsss_jax.errors import InputError
from wsss_jax.slides.reading.cache import paste

# Saturation (0..255) of glass stays below the first, that of pale stroma above the second. Otsu's
# threshold is clipped to them: on glass alone it would split noise, on tissue alone the tissue.
_OTSU_LIMITS = (10, 25)
_SPECK = 16  # pixels of the overview; smaller glass at its border is noise
_DARKEST = 30  # largest channel; below it saturation is noise: frames, areas not scanned


def detect_tissue(
    overview: np.ndarray,
    mpp: float,
    *,
    threshold: float | Literal["otsu"],
    closing: float,
    min_tissue: float,
    min_hole: float,
) -> np.ndarray:
    """Detects stained tissue on glass by its saturation.

    Pen marks are saturated and count as tissue, and so does stained dirt above `min_tissue`; fat
    and lumina wider than `min_hole` count as glass. Where that matters, use a mask (`read_mask`).

    Args:
      overview: (h, w, 3) uint8 RGB of the whole slide.
      mpp: micrometers per pixel of it.
      threshold: least saturation of tissue in HSV, 0..255, or "otsu" to choose it per slide.
      closing: radius in micrometers; narrower gaps in tissue are closed.
      min_tissue: square micrometers; smaller pieces of tissue are dropped.
      min_hole: square micrometers; smaller pieces of glass become tissue, unless they touch the
        border of the slide and so are not holes.

    Returns:
      (h, w) bool, True where there is tissue.

    Raises:
      InputError: `threshold` is neither "otsu" nor a number from 0 to 255.
    """
    _, saturation, value = cv2.split(cv2.cvtColor(cv2.medianBlur(overview, 3), cv2.COLOR_RGB2HSV))
    if threshold == "otsu":
        otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        least = min(max(otsu, _OTSU_LIMITS[0]), _OTSU_LIMITS[1])
    elif not isinstance(threshold, str) and 0 <= threshold <= 255:
        least = threshold
    else:
        raise InputError(
            f"config.tissue.threshold is {threshold!r}: set otsu or a saturation of 0 to 255"
        )
    tissue = _close((saturation > least) & (value > _DARKEST), round(closing / mpp))
    tissue = ~_drop_small(~tissue, min_hole / mpp**2, connectivity=4, keep_border=True)
    return _drop_small(tissue, min_tissue / mpp**2, connectivity=8)


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    side = 2 * radius + 1
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # Padded with glass, or gaps between tissue and the border would be closed as well.
    padded = np.pad(mask, radius).astype(np.uint8)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disk)
    return closed[radius : radius + mask.shape[0], radius : radius + mask.shape[1]] > 0


def _drop_small(
    mask: np.ndarray, area: float, connectivity: int, *, keep_border: bool = False
) -> np.ndarray:
    """Drops the components of a mask with less than `area` pixels.

    With `keep_border`, components at the border of the image, which may continue beyond it, are
    dropped only if they are noise.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=connectivity
    )
    keep = stats[:, cv2.CC_STAT_AREA] >= area
    if keep_border:
        for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            keep[border] |= stats[border, cv2.CC_STAT_AREA] >= _SPECK
    keep[0] = False  # label 0 is outside of the mask
    return keep[labels]


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask image of any size; values that are not zero are tissue.

    Transparency is ignored. Of a palette the indices count, not the colors.

    Args:
      path: a PNG, JPEG or TIFF with any file ending. PNG and JPEG are turned by their EXIF
        orientation, as slides of these formats are; a TIFF with an Orientation tag is refused, as
        viewers do not turn slides of this format.

    Returns:
      (h, w) bool.

    Raises:
      InputError: no such file, not an image, color of 16 bits, over 178 million pixels, or a TIFF
        with an Orientation tag.
    """
    if not path.exists():
        raise InputError(f"{path}: no such tissue mask; correct the path")
    with open_picture(path, ("PNG", "JPEG", "TIFF")) as picture:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        if picture.format == "TIFF" and orientation in range(2, 9):
            raise InputError(
                f"{path}: its Orientation tag ({orientation}) turns it, but viewers do not turn "
                "slides; save it without the tag, as the slide is stored"
            )
        bands = picture.getbands()
        values = np.atleast_3d(np.asarray(turn_upright(picture)))
    return np.any(values[..., : len(bands) - ("A" in bands)] > 0, axis=-1)


class Tissue:
    """A tissue mask stretched over a slide or a part of it, by the nearest value.

    Takes little memory: the mask, and one index for each row and column of the slide.

    Attributes:
      width, height: of the slide in working pixels.
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
          area: left, top, width, height of the area that the mask covers, in working pixels;
            around it there is no tissue. None: the whole slide.
        """
        if area is None:
            rows, columns = _map_nearest(mask.shape[0], height), _map_nearest(mask.shape[1], width)
        else:
            left, top, wide, tall = area
            mask = np.pad(mask, 1)  # the border stands for everything around the area
            rows = _map_nearest_within(mask.shape[0] - 2, height, top, tall)
            columns = _map_nearest_within(mask.shape[1] - 2, width, left, wide)
        # Only rows and columns of the mask that some working pixel falls on are kept.
        used_rows, self._rows = np.unique(rows, return_inverse=True)
        used_columns, self._columns = np.unique(columns, return_inverse=True)
        self._mask = mask = mask[np.ix_(used_rows, used_columns)]
        self.width, self.height = width, height
        self._integral = cv2.integral(mask.astype(np.uint8))  # (h + 1, w + 1) int32

    @classmethod
    def everywhere(cls, width: int, height: int) -> "Tissue":
        """Returns the tissue of a slide that is tissue everywhere."""
        return cls(np.ones((1, 1), bool), width, height)

    def has_tissue(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether a region in working pixels has any tissue; outside of the slide there is none."""
        rows, columns = self._find_cells(x, y, width, height)
        if not (rows.size and columns.size):
            return False
        (x0, x1), (y0, y1) = (columns[0], columns[-1] + 1), (rows[0], rows[-1] + 1)
        sums = self._integral
        return bool(sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0])

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Reads a region in working pixels: (height, width) bool, False outside the slide."""
        region = np.zeros((height, width), bool)
        inside = self._mask[np.ix_(*self._find_cells(x, y, width, height))]
        paste(region, x, y, inside, max(x, 0), max(y, 0))
        return region

    def draw_pixels(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws working pixels of tissue, each as likely as any other.

        Returns:
          (count, 2) int64, their x and y; (0, 2) without any tissue.
        """
        of_rows, of_columns = np.bincount(self._rows), np.bincount(self._columns)
        sums = np.cumsum(of_rows * (self._mask @ of_columns))
        if not sums[-1]:
            return np.empty((0, 2), np.int64)
        rows = np.searchsorted(sums, rng.integers(sums[-1], size=count), side="right")
        first_rows, first_columns = np.cumsum(of_rows) - of_rows, np.cumsum(of_columns) - of_columns
        pixels = np.empty((count, 2), np.int64)
        for pixel, row in zip(pixels, rows, strict=True):
            in_row = np.cumsum(self._mask[row] * of_columns)
            column = np.searchsorted(in_row, rng.integers(in_row[-1]), side="right")
            pixel[0] = first_columns[column] + rng.integers(of_columns[column])
            pixel[1] = first_rows[row] + rng.integers(of_rows[row])
        return pixels

    def _find_cells(self, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the mask's row for each row of a region inside the slide, and likewise columns."""
        rows = self._rows[max(y, 0) : max(y + height, 0)]
        return rows, self._columns[max(x, 0) : max(x + width, 0)]

    def count_pixels(self) -> int:
        """Counts the working pixels of tissue."""
        # Every row and column of the mask is used.
        return int(np.bincount(self._rows) @ (self._mask @ np.bincount(self._columns)))


def _map_nearest(size: int, length: int) -> np.ndarray:
    """Returns the index, of `size`, that each of `length` pixels falls on; (length,) int."""
    return (2 * np.arange(length, dtype=np.int64) + 1) * size // (2 * length)


def _map_nearest_within(size: int, length: int, start: float, extent: float) -> np.ndarray:
    """Returns 1 + the index within an interval; 0 before it, size + 1 after it; (length,) int."""
    position = (np.arange(length) + 0.5 - start) / extent
    return (1 + np.floor(position * size)).clip(0, size + 1).astype(np.int64)
