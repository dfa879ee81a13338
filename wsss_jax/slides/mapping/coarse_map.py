"""A coarse map of a slide, of every n-th tile, into which finished parts are copied.

The tiles lie on the grid of the exact map but are computed before it, in batches of their own: the
batches of the exact map stay as they are.
"""

import math
from typing import NamedTuple

import numpy as np

from wsss_jax.slides.mapping.parts import Part
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.slides.mapping.tissue import Tissue

_NOTHING, _GUESS, _KNOWN = range(3)  # what there is for a pixel of a coarse map


class CoarseTiles(NamedTuple):
    """Some tiles of the grid, from coarse to fine: the first few are all over the slide.

    Attributes:
      every: n; one of n x n tiles is among them.
      places: (N, 2) int, (x, y) in working pixels.
      reaches: (N,) int, working pixels from its middle, along an axis, up to which a tile speaks
        for the tissue until finer ones come.
    """

    every: int
    places: np.ndarray
    reaches: np.ndarray


def choose_tiles(tissue: Tissue, tiling: Tiling, share: float, total: int) -> CoarseTiles:
    """Chooses every n-th tile with tissue, each way; n is the smallest that `share` allows.

    Args:
      tissue: of the slide.
      tiling: the grid.
      share: most tiles, as a share of `total`; over 0.
      total: tiles of the exact map.

    Returns:
      none if the share is less than a tile.
    """
    xs, ys = tiling.place(tissue.width), tiling.place(tissue.height)
    size = min(tiling.tile, tissue.width), min(tiling.tile, tissue.height)
    every = math.ceil(share**-0.5)
    while True:
        # Each n-th from the middle of the first n; of fewer the middle one.
        columns, rows = (of[min(every // 2, (len(of) - 1) // 2) :: every] for of in (xs, ys))
        chosen = [
            (x, y, i, j)
            for j, y in enumerate(rows.tolist())
            for i, x in enumerate(columns.tolist())
            if tissue.has_tissue(x, y, *size)
        ]
        if len(chosen) > share * total and len(columns) == len(rows) == 1:
            chosen = []  # a share of so few tiles is not even one
        if len(chosen) <= share * total:
            break
        every += 1
    coarsest = max(len(columns), len(rows)).bit_length()
    grid = np.array(chosen, np.int64).reshape(-1, 4)
    # On the grid of every 2nd, 4th, 8th, ... of the chosen columns and rows: by the zeros at the
    # end of their binary numbers.
    numbers = grid[:, 2] | grid[:, 3] | 1 << coarsest
    levels = np.log2(numbers & -numbers).astype(np.int64)
    order = np.argsort(-levels, kind="stable")
    reaches = (every * tiling.stride << levels[order]) // 2
    return CoarseTiles(every, grid[order, :2], reaches)


class CoarseMap:
    """A map at the pixels of a thumbnail."""

    def __init__(self, pixels: tuple[np.ndarray, np.ndarray], tissue: np.ndarray, num_classes: int):
        """Begins with a map of which nothing is known.

        Args:
          pixels: (h,) and (w,) int, the working pixels of its rows and columns, ascending.
          tissue: (h, w) bool; the map is excluded elsewhere, until a part says otherwise.
          num_classes: C.
        """
        self._rows, self._columns = pixels
        self._tissue, self._excluded = tissue, num_classes
        self._labels = np.full(tissue.shape, num_classes, np.uint8)
        self._state = np.full(tissue.shape, _NOTHING, np.uint8)

    def add_tile(self, x: int, y: int, probabilities: np.ndarray, reach: int) -> None:
        """Adds a tile (tile, tile, C) at (x, y): its labels, and around them its main class."""
        side = len(probabilities)
        rows, columns, inside = self._find(x, y, x + side, y + side)
        labels = probabilities.argmax(axis=-1).astype(np.uint8)[np.ix_(rows - y, columns - x)]
        in_tissue = labels[self._tissue[inside]]
        if not in_tissue.size:
            return  # so little tissue that no pixel of the thumbnail falls on it
        main = np.bincount(in_tissue).argmax()
        middle_x, middle_y = x + side // 2, y + side // 2
        *_, around = self._find(
            middle_x - reach, middle_y - reach, middle_x + reach, middle_y + reach
        )
        is_open = self._tissue[around] & (self._state[around] != _KNOWN)
        self._labels[around][is_open] = main
        self._state[around][is_open] = _GUESS
        self._labels[inside] = np.where(self._tissue[inside], labels, self._excluded)
        self._state[inside] = _KNOWN

    def add_part(self, part: Part, labels: np.ndarray) -> None:
        """Copies the labels (rows, columns) of a finished part."""
        rows, columns, inside = self._find(*part)
        self._labels[inside] = labels[np.ix_(rows - part.y0, columns - part.x0)]
        self._state[inside] = _KNOWN

    def _find(
        self, x0: int, y0: int, x1: int, y1: int
    ) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]]:
        """Finds the working pixels of the map within a rectangle, and where they lie in it."""
        i0, i1 = np.searchsorted(self._rows, (y0, y1)).tolist()
        j0, j1 = np.searchsorted(self._columns, (x0, x1)).tolist()
        return self._rows[i0:i1], self._columns[j0:j1], np.s_[i0:i1, j0:j1]

    @property
    def labels(self) -> np.ndarray:
        """(h, w) uint8, what is known or guessed; C where it is excluded or nothing is known."""
        return self._labels

    @property
    def is_guess(self) -> np.ndarray:
        """(h, w) bool, where a label is the main class of a tile beside."""
        return self._state == _GUESS
