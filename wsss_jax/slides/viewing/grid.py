"""The pyramid of tiles of an image, as pages with deep zoom ask for it."""

import math
from collections.abc import Iterator
from typing import NamedTuple

SIDE = 512  # pixels of a tile, height and width


class Box(NamedTuple):
    """A rectangle of pixels of one level."""

    left: int
    top: int
    width: int
    height: int


class TileGrid(NamedTuple):
    """The tiles of an image.

    The last level has the pixels of the image, each one before half as many along both axes, and
    level 0 fits into one tile. Columns and rows are added at the right and at the bottom until all
    levels have whole pixels, so that no level is stretched against another.

    Attributes:
      width, height: of the image, pixels.
      last: number of the last level.
    """

    width: int
    height: int
    last: int

    @property
    def padded(self) -> tuple[int, int]:
        """Width and height of the last level."""
        whole = 2**self.last
        return -(-self.width // whole) * whole, -(-self.height // whole) * whole

    def get_step(self, level: int) -> int:
        """Returns how many pixels of the image are one of a level, along an axis."""
        return 2 ** (self.last - level)

    def locate(self, level: int, column: int, row: int) -> Box | None:
        """Locates a tile in the pixels of its level; None = there is no such tile."""
        if not (0 <= level <= self.last and column >= 0 and row >= 0):
            return None
        step = self.get_step(level)
        width, height = (size // step for size in self.padded)
        left, top = column * SIDE, row * SIDE
        if left >= width or top >= height:
            return None
        return Box(left, top, min(SIDE, width - left), min(SIDE, height - top))

    def list_tiles(self, level: int) -> Iterator[tuple[int, int]]:
        """Yields the column and row of each tile of a level."""
        columns, rows = (-(-size // (self.get_step(level) * SIDE)) for size in self.padded)
        for row in range(rows):
            for column in range(columns):
                yield column, row


def make_grid(width: int, height: int) -> TileGrid:
    """Makes the grid of an image of so many pixels."""
    return TileGrid(width, height, max(0, math.ceil(math.log2(max(width, height) / SIDE))))
