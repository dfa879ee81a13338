"""Sums of a map over square windows, from which hot spots are chosen.

Sums are taken over the cells of a grid, and windows are squares of cells, so that the windows of a
slide need little memory and no order of the parts changes the result.
"""

from typing import NamedTuple

import numpy as np

from wsss_jax.slides.mapping.parts import Part

CELLS = 4  # along the side of a window: windows move in steps of a quarter of their side


class Window(NamedTuple):
    """A window, in pixels of the map: columns x0 to x1 and rows y0 to y1, without x1 and y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def pixels(self) -> int:
        """Number of its pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)


class WindowSums:
    """Sums over windows, added up part by part.

    Attributes:
      sums: (channels, rows of cells, columns of cells) int64.
      window_pixels: pixels of a whole window; at the border of the map they may have less.
    """

    def __init__(self, side: float, width: int, height: int, channels: int):
        """Starts with zeros.

        Args:
          side: of a window in pixels, rounded to a multiple of `CELLS`.
          width, height: of the map in pixels. Along a side that is shorter than a window, windows
            are as long as the map.
          channels: number of sums.
        """
        self._cell = max(1, round(side / CELLS))
        self.window_pixels = (CELLS * self._cell) ** 2
        self._width, self._height = width, height
        shape = channels, -(-height // self._cell), -(-width // self._cell)
        self.sums = np.zeros(shape, np.int64)

    def add(self, channel: int, part: Part, values: np.ndarray) -> None:
        """Adds the values of a part to the sums of the cells that they lie in.

        Args:
          channel: which sum.
          part: where the values lie.
          values: (rows, columns) uint8 or bool.
        """
        rows, first_row = _find_starts(part.y0, part.y1, self._cell)
        columns, first_column = _find_starts(part.x0, part.x1, self._cell)
        of_columns = np.add.reduceat(values, columns, axis=1, dtype=np.int64)
        of_cells = np.add.reduceat(of_columns, rows, axis=0)
        tall, wide = of_cells.shape
        self.sums[channel, first_row : first_row + tall, first_column : first_column + wide] += (
            of_cells
        )

    def sum_windows(self) -> np.ndarray:
        """Sums over all windows inside the map: (channels, rows, columns) int64 of positions."""
        sums = self.sums
        for axis in (1, 2):
            length = min(CELLS, sums.shape[axis])
            ends = np.cumsum(sums, axis=axis)
            before = np.insert(ends, 0, 0, axis=axis)
            stop = sums.shape[axis] - length + 1
            sums = ends.take(range(length - 1, length - 1 + stop), axis) - before.take(
                range(stop), axis
            )
        return sums

    def count_pixels(self) -> np.ndarray:
        """Counts the pixels of all windows: (rows, columns) int64 of positions."""
        cells = self.sums.shape[1:]
        tall, wide = (
            np.minimum(starts + CELLS * self._cell, size) - starts
            for starts, size in (
                (np.arange(max(1, count - CELLS + 1)) * self._cell, size)
                for count, size in zip(cells, (self._height, self._width))
            )
        )
        return np.outer(tall, wide)

    def get_window(self, row: int, column: int) -> Window:
        """Returns the window at a position of `sum_windows`."""
        x0, y0 = column * self._cell, row * self._cell
        side = CELLS * self._cell
        return Window(x0, y0, min(x0 + side, self._width), min(y0 + side, self._height))


def _find_starts(start: int, stop: int, cell: int) -> tuple[np.ndarray, int]:
    """Finds where cells begin within start..stop, relative to start; and the first cell."""
    starts = np.arange(start // cell * cell, stop, cell) - start
    return np.maximum(starts, 0), start // cell


def choose_apart(scores: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Chooses the windows with the highest scores, none of which overlaps another.

    Args:
      scores: (rows, columns) floats at the positions of `WindowSums.sum_windows`; -inf where a
        window does not count. Of equal ones the first counts, row by row.
      most: number of windows.

    Returns:
      Positions (row, column), the highest score first.
    """
    left = scores.astype(np.float64)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < most and np.isfinite(left.max(initial=-np.inf)):
        row, column = divmod(int(np.argmax(left)), left.shape[1])
        chosen.append((row, column))
        rows, columns = (slice(max(0, at - CELLS + 1), at + CELLS) for at in (row, column))
        left[rows, columns] = -np.inf
    return chosen
