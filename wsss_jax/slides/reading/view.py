"""A slide at the working resolution, the one of the patches that networks learn from."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.reading import resampling
from wsss_jax.slides.reading.block_file import BlockFile, open_block_file
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
        self._shared: _SharedColumns | None = None

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
                make = functools.partial(self._make_block, left, top)
                paste(image, x, y, self._blocks.get((left, top), make), left, top)
        return image

    @contextmanager
    def share_columns(self, spans: Iterable[tuple[int, int]], folder: Path) -> Iterator[None]:
        """Decodes once, while the context lasts, what is read twice with much in between.

        Blocks with these columns go to a temporary file, from where they are read once more. Where
        two strips meet these are two columns of blocks, 6 kB for each row of the slide.

        Args:
          spans: first and last (exclusive) columns, in working pixels.
          folder: where the file is.
        """
        side = self._grid.side
        lefts = {left for x0, x1 in spans for left in range(x0 // side * side, x1, side)}
        with open_block_file(folder, 3 * side**2) as file:
            self._shared = _SharedColumns(frozenset(lefts), file)
            try:
                yield
            finally:
                self._shared = None

    def _make_block(self, left: int, top: int) -> np.ndarray:
        shared = self._shared
        if shared is None or left not in shared.lefts:
            return read_block(self.slide, self._grid, left, top)
        block = shared.file.take((left, top))
        if block is None:
            block = read_block(self.slide, self._grid, left, top)
            shared.file.put((left, top), block)
        return block

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


class _SharedColumns(NamedTuple):
    """Columns of blocks that are read twice, by their left ends, and the file for these blocks."""

    lefts: frozenset[int]
    file: BlockFile


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
    columns = _find_span(x, width, grid.ratio[0], level.width, grid.method)
    rows = _find_span(y, height, grid.ratio[1], level.height, grid.method)
    size = columns.last - columns.first, rows.last - rows.first
    source = slide.read(grid.level, columns.first, rows.first, *size)
    # Levels may end up to one of their pixels before the slide does; their border is repeated.
    missing = [max(0, math.ceil(span.stop) - span.last) for span in (rows, columns)]
    if any(missing):
        source = np.pad(source, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    left, top = columns.origin, rows.origin
    box = columns.start - left, rows.start - top, columns.stop - left, rows.stop - top
    corner = columns.first - left, rows.first - top
    return resampling.resize(source, box, (width, height), grid.ratio, grid.method, corner)


class _Span(NamedTuple):
    """An interval along an axis, in pixels of a level.

    Attributes:
      start, stop: its ends.
      first, last: the pixels to read for it, without `last`.
      origin: the pixel from which they are counted, at or before `first`.
    """

    start: float
    stop: float
    first: int
    last: int
    origin: int


def _find_span(
    start: int, length: int, ratio: float, size: int, method: resampling.Method
) -> _Span:
    """Finds what to read for `length` pixels from `start` on, of a level of `size` pixels."""
    begin, end = start * ratio, (start + length) * ratio
    # The triangle filter reaches `ratio` level pixels beyond the box, one when enlarging.
    margin = 0 if ratio == 1 else math.ceil(max(ratio, 1.0)) + 1
    origin = min(max(0, math.floor(begin) - margin), size - 1)
    # A mean needs no margin, and no slide tile that only the margin touches.
    needed = 0 if resampling.is_mean(ratio, method) else margin
    first = min(max(0, math.floor(begin) - needed), size - 1)
    last = min(max(math.ceil(end) + needed, first + 1), size)
    return _Span(begin, end, first, last, origin)
