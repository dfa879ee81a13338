"""Tiles of the tissue, straight from the slide."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.pictures import open_picture
from wsss_jax.slides.reading.cache import make_white, paste
from wsss_jax.slides.reading.slide import Slide, check_mpp
from wsss_jax.slides.reading.view import View
from wsss_jax.slides.viewing.grid import Box, TileGrid, make_grid

_SLACK = 1.01  # levels are rounded: one that is this much coarser still serves


class TissueTiles:
    """The tissue of a slide as a pyramid of tiles. Several threads may read it.

    Attributes:
      mpp: micrometers per pixel of the last level, the same along both axes: the finer one of the
        slide.
      grid: its tiles.
    """

    def __init__(self, slide: Slide, thumbnail: Path):
        """Prepares a slide whose resolution is known.

        Args:
          slide: the slide.
          thumbnail: a picture of all of it, for coarse levels that the slide does not have.
        """
        across, down = check_mpp(slide)
        self.mpp = min(across, down)
        self.grid: TileGrid = make_grid(
            math.ceil(slide.width * across / self.mpp), math.ceil(slide.height * down / self.mpp)
        )
        steps = (self.grid.get_step(level) for level in range(self.grid.last + 1))
        self._views = [View(slide, self.mpp * step) for step in steps]
        self._slide, self._thumbnail = slide, thumbnail

    @functools.cached_property
    def _small(self) -> Image.Image:
        with open_picture(self._thumbnail, ("PNG",)) as picture:
            return picture.convert("RGB")

    def read(self, level: int, box: Box) -> np.ndarray:
        """Reads a tile.

        Args:
          level: of the grid.
          box: in its pixels, with its corner on the slide.

        Returns:
          (height, width, 3) uint8 RGB, white outside of the slide.

        Raises:
          InputError: the slide cannot be decoded there.
        """
        view = self._views[level]
        tile = make_white(box.height, box.width)
        if box.left >= view.width or box.top >= view.height:
            return tile
        side = max(box.width, box.height)
        if view.is_cheap(side) and (whole := self._find_whole_ratio(level)):
            return self._reduce(box, *whole)
        if view.is_cheap(side):
            part = view.read_alone(box.left, box.top, side)
        else:
            part = self._enlarge(box, (view.width, view.height))
        paste(tile, 0, 0, part, 0, 0)
        return tile

    def _find_whole_ratio(self, level: int) -> tuple[int, int] | None:
        """Finds the slide's level of which each pixel of a level is a square of whole pixels.

        Returns:
          the number of the slide's level, and the side of that square; None = there is none, as
          where pixels are not square.
        """
        step, (across, down) = self.grid.get_step(level), check_mpp(self._slide)
        levels = self._slide.levels
        coarsest = max(
            (i for i, each in enumerate(levels) if each.downsample <= step * _SLACK),
            key=lambda i: levels[i].downsample,
        )
        ratio = step / levels[coarsest].downsample
        # Over the whole slide, less than half a pixel of the level off.
        drift = abs(ratio - round(ratio)) * max(self.grid.padded) / step
        return (coarsest, round(ratio)) if across == down and drift < 0.5 else None

    def _reduce(self, box: Box, level: int, ratio: int) -> np.ndarray:
        """Reads the means of squares of a level of the slide, many times faster than `View`."""
        region = (value * ratio for value in box)
        pixels = self._slide.read(level, *region)
        if ratio == 1:
            return pixels
        return cv2.resize(pixels, (box.width, box.height), interpolation=cv2.INTER_AREA)

    def read_box(self, box: Sequence[float], longest: int) -> np.ndarray:
        """Reads a part of the slide as a small picture.

        Args:
          box: left, top, width, height in level-0 pixels.
          longest: pixels of its longer side, at most.
        """
        sides = [mpp / self.mpp for mpp in check_mpp(self._slide)]
        left, top, width, height = (value * sides[i % 2] for i, value in enumerate(box))
        factor = max(1.0, max(width, height) / longest)
        level = self.grid.last - min(self.grid.last, int(math.log2(factor)))
        step = self.grid.get_step(level)
        width, height = (max(1, min(2 * longest, round(v / step))) for v in (width, height))
        pixels = self.read(level, Box(round(left / step), round(top / step), width, height))
        picture = Image.fromarray(pixels)
        picture.thumbnail((longest, longest), Image.Resampling.BOX)
        return np.asarray(picture)

    def _enlarge(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """Cuts a box of a level of this size out of the thumbnail."""
        width, height = min(box.width, size[0] - box.left), min(box.height, size[1] - box.top)
        x, y = self._small.width / size[0], self._small.height / size[1]
        source = (box.left * x, box.top * y, (box.left + width) * x, (box.top + height) * y)
        return np.asarray(self._small.resize((width, height), Image.Resampling.BILINEAR, source))
