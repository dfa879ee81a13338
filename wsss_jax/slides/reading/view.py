"""A slide at the working resolution, the one of the patches that networks learn from."""

import dataclasses
import functools
import math

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.reading import resampling
from wsss_jax.slides.reading.cache import Cache, make_white, paste
from wsss_jax.slides.reading.slide import Slide, check_mpp

BLOCK = 1024  # working pixels: 3 MB, and whole tiles of 256 and 512 where nothing is resampled
CACHE_BYTES = 128 << 20  # of blocks: two rows of a strip of 8192 columns, twice
_SOURCE = 4096  # a block never needs more level pixels than about the square of this
_SLACK = 1.01  # metadata is rounded: a level this much coarser than asked for still serves
_COARSER = 0.9  # level-0 pixels per working pixel below which a slide is said to be enlarged


class View:
    """A slide at the working resolution.

    Working pixel (i, j) covers the rectangle of `scale` level-0 pixels whose upper left corner is
    (i * scale[0], j * scale[1]). Its value does not depend on the region it is read in: blocks of a
    fixed grid are resampled, each with a margin, cached, and regions cut from them. Several threads
    may read.

    Attributes:
      slide: the slide.
      mpp: micrometers per working pixel, which is square.
      scale: level-0 pixels per working pixel, across and down.
      width, height: size in working pixels.
      warning: one sentence if the slide is coarser than `mpp`, else "".
    """

    def __init__(self, slide: Slide, mpp: float, method: resampling.Method = "area"):
        """Prepares a slide for reading at `mpp` micrometers per pixel.

        Raises:
          InputError: the slide's mpp is unknown, or over twice `mpp`.
        """
        across, down = check_mpp(slide)
        self.slide, self.mpp, self.scale = slide, mpp, (mpp / across, mpp / down)
        self.warning, coarsest = "", max(across, down)
        if min(self.scale) < 0.5 / _SLACK:
            raise InputError(
                f"{slide.path}: its {coarsest:g} micrometers per pixel are over twice the {mpp:g} "
                "at which it is to be read; scan it finer, or cut patches and train networks at a "
                "coarser resolution"
            )
        if min(self.scale) < _COARSER:
            self.warning = (
                f"its {coarsest:g} micrometers per pixel are coarser than the {mpp:g} at which it "
                "is read: it is enlarged, detail is missing"
            )
        self.width = max(1, round(slide.width / self.scale[0]))
        self.height = max(1, round(slide.height / self.scale[1]))
        self._method: resampling.Method = method
        self._grid = _choose_grid(slide, self.scale, (self.width, self.height), method)
        self._blocks = Cache(CACHE_BYTES)

    @property
    def frame(self) -> MapFrame:
        """Where a map of the working resolution lies on the slide."""
        slide = self.slide
        return MapFrame(
            width=self.width,
            height=self.height,
            mpp=self.mpp,
            scale=self.scale,
            slide_size=(slide.width, slide.height),
            origin=slide.bounds[:2],
        )

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Reads a region in working pixels.

        Returns:
          (height, width, 3) uint8 RGB, white outside the slide.

        Raises:
          InputError: the file cannot be decoded there.
        """
        image = make_white(height, width)
        side = self._grid.side
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        for top in range(max(y, 0) // side * side, bottom, side):
            for left in range(max(x, 0) // side * side, right, side):
                make = functools.partial(read_block, self.slide, self._grid, left, top)
                paste(image, x, y, self._blocks.get((left, top), make), left, top)
        return image

    def read_alone(self, x: int, y: int, side: int) -> np.ndarray:
        """Reads a square inside the slide past the cache: only what it covers is decoded.

        For squares here and there. Values are those of `read`, but for rounding where the scale is
        no whole number.

        Returns:
          (side, side, 3) uint8 RGB.

        Raises:
          InputError: the file cannot be decoded there.
        """
        if not self.is_cheap(side):
            return self.read(x, y, side, side)
        return read_block(self.slide, dataclasses.replace(self._grid, side=side), x, y)

    def is_cheap(self, side: int) -> bool:
        """Whether a square of so many pixels needs few of the slide's: it has a level for it."""
        return side * max(self._grid.ratio) <= _SOURCE

    def read_overview(self, longest: int) -> tuple[np.ndarray, float]:
        """Reads the whole slide at low resolution.

        A slide without lower levels is read from end to end for it, in blocks.

        Args:
          longest: pixels of the longer side, at most.

        Returns:
          (h, w, 3) uint8 RGB, and working pixels per pixel of it, at least 1.

        Raises:
          InputError: the file cannot be decoded.
        """
        factor = max(1.0, max(self.width, self.height) / longest)
        width, height = (max(1, round(size / factor)) for size in (self.width, self.height))
        scale = self.scale[0] * factor, self.scale[1] * factor
        grid = _choose_grid(self.slide, scale, (width, height), self._method)
        image = make_white(height, width)
        for top in range(0, height, grid.side):
            for left in range(0, width, grid.side):
                paste(image, 0, 0, read_block(self.slide, grid, left, top), left, top)
        return image, factor


@dataclasses.dataclass(frozen=True)
class Grid:
    """A level resampled in square blocks.

    Attributes:
      level: the level.
      ratio: level pixels per pixel, across and down.
      width, height: of the whole resampled image, pixels.
      side: of a block, pixels.
      method: of resampling.
    """

    level: int
    ratio: tuple[float, float]
    width: int
    height: int
    side: int
    method: resampling.Method


def _choose_grid(
    slide: Slide, scale: tuple[float, float], size: tuple[int, int], method: resampling.Method
) -> Grid:
    """Chooses the level to resample to `size` (width, height), and the side of its blocks."""
    coarsest = min(scale) * _SLACK
    fine = [i for i, level in enumerate(slide.levels) if level.downsample <= coarsest]
    level = max(fine, key=lambda i: slide.levels[i].downsample, default=0)
    # Below half a pixel of drift over the whole slide the nearest neighbor of every pixel is the
    # pixel itself. Resampling would shift by less than that and blur in bands.
    across, down = (
        1.0 if abs(ratio - 1) * max(size) < 0.5 else ratio
        for ratio in (along / slide.levels[level].downsample for along in scale)
    )
    side = BLOCK
    while side > 1 and side * max(across, down) > _SOURCE:
        side //= 2
    return Grid(level, (across, down), *size, side, method)


def read_block(slide: Slide, grid: Grid, x: int, y: int) -> np.ndarray:
    """Reads the block with the upper left corner (x, y), cropped to the grid's size; uint8 RGB."""
    width, height = min(grid.side, grid.width - x), min(grid.side, grid.height - y)
    level = slide.levels[grid.level]
    left, right, columns = _find_span(x, width, grid.ratio[0], level.width)
    top, bottom, rows = _find_span(y, height, grid.ratio[1], level.height)
    source = slide.read(grid.level, left, top, right - left, bottom - top)
    # Levels may end up to one of their pixels before the slide does; their border is repeated.
    missing = (max(0, math.ceil(rows[1]) - bottom), max(0, math.ceil(columns[1]) - right))
    if any(missing):
        source = np.pad(source, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    box = (columns[0] - left, rows[0] - top, columns[1] - left, rows[1] - top)
    return resampling.resize(source, box, (width, height), grid.ratio, grid.method)


def _find_span(
    start: int, length: int, ratio: float, size: int
) -> tuple[int, int, tuple[float, float]]:
    """Finds the first and last (exclusive) level pixel along an axis, and the exact interval."""
    # The triangle filter reaches `ratio` level pixels beyond the box, one when enlarging.
    margin = 0 if ratio == 1 else math.ceil(max(ratio, 1.0)) + 1
    interval = (start * ratio, (start + length) * ratio)
    first = min(max(0, math.floor(interval[0]) - margin), size - 1)
    last = min(max(math.ceil(interval[1]) + margin, first + 1), size)
    return first, last, interval
