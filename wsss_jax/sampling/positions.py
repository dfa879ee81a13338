"""Where patches lie on a slide: at random positions with tissue, or in a grid."""

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.reading.view import View

_DRAWN = 512  # positions drawn at a time
_MISSES = 2000  # positions in a row that fit nowhere, after which the tissue counts as full


class Area(NamedTuple):
    """The working pixels in which patches must lie; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def find_area(view: View) -> Area:
    """Finds the working pixels that lie in the scanned area with all they cover."""
    x, y, width, height = view.slide.bounds
    across, down = view.scale
    return Area(
        left=math.ceil(x / across),
        top=math.ceil(y / down),
        # The last row and column may reach a little beyond the slide.
        right=min(view.width, math.floor((x + width) / across)),
        bottom=min(view.height, math.floor((y + height) / down)),
    )


def draw_positions(
    tissue: Tissue,
    area: Area,
    side: int,
    count: int,
    max_overlap: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws squares whose centers are on tissue, each pixel of it as likely as any other.

    Args:
      tissue: of the slide.
      area: where squares must lie.
      side: of a square, working pixels.
      count: of squares; fewer if no more find room.
      max_overlap: largest share of a square that another one may cover.
      rng: decides; the first n squares do not depend on `count`.

    Returns:
      (n, 2) int64, the upper left corners (x, y) in the order drawn.
    """
    placed = _Squares(side, max_overlap)
    misses = 0 if tissue.count_pixels() else _MISSES
    while len(placed.corners) < count and misses < _MISSES:
        for x, y in tissue.draw_pixels(rng, _DRAWN) - side // 2:
            if len(placed.corners) == count or misses == _MISSES:
                break
            inside = area.left <= x <= area.right - side and area.top <= y <= area.bottom - side
            misses = 0 if inside and placed.add(int(x), int(y)) else misses + 1
    return np.array(placed.corners, np.int64).reshape(-1, 2)


def place_grid(tissue: Tissue, area: Area, side: int, max_overlap: float) -> np.ndarray:
    """Places squares in rows and columns, those whose centers are on tissue.

    Args:
      tissue, area, side: as of `draw_positions`.
      max_overlap: share of a square that its neighbor in the row covers.

    Returns:
      (n, 2) int64, the upper left corners (x, y), row by row.
    """
    stride = max(1, round(side * (1 - max_overlap)))
    half = side // 2
    corners = [
        (x, y)
        for y in range(area.top, area.bottom - side + 1, stride)
        for x in range(area.left, area.right - side + 1, stride)
        if tissue.has_tissue(x + half, y + half, 1, 1)
    ]
    return np.array(corners, np.int64).reshape(-1, 2)


class _Squares:
    """Squares of one size, found by where they are.

    Attributes:
      corners: (x, y) of each, in the order added.
    """

    def __init__(self, side: int, max_overlap: float):
        self.corners: list[tuple[int, int]] = []
        self._side, self._most = side, max_overlap * side**2
        self._cells: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)

    def add(self, x: int, y: int) -> bool:
        """Adds a square unless it overlaps another one too much; returns whether it did."""
        column, row = x // self._side, y // self._side
        for cell in [(column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
            for other_x, other_y in self._cells.get(cell, ()):
                wide, tall = self._side - abs(x - other_x), self._side - abs(y - other_y)
                if min(wide, tall) > 0 and wide * tall > self._most:
                    return False
        self.corners.append((x, y))
        self._cells[column, row].append((x, y))
        return True
