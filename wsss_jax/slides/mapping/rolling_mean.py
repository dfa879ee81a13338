"""The weighted mean of tiles over a strip, kept for as many rows as a tile has."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.parts import Part


class Band(NamedTuple):
    """Averaged rows of a part, cropped to the columns from the first to the last with a tile.

    Attributes:
      part: the part; its bands come from top to bottom and fill it.
      x, y: upper left corner on the slide, in working pixels.
      means: (rows, columns, C) float32; 0 where no tile lies; valid until the next band.
      covered: (rows, columns) bool, where a tile lies.
    """

    part: Part
    x: int
    y: int
    means: np.ndarray
    covered: np.ndarray


class RollingMean:
    """Weighted sums over the columns of a strip and the `tile` rows from `top` down.

    Tiles are added from top to bottom; rows that no later tile can reach are averaged and leave.
    """

    def __init__(self, run: Sequence[Part], weights: np.ndarray, num_classes: int):
        """Begins at the top of a run.

        Args:
          run: parts of one strip, each below the one before.
          weights: (tile, tile) float32, of a tile's pixels.
          num_classes: C.
        """
        self._run, self._weights = deque(run), weights
        self._left, self._top, self._bottom = run[0].x0, run[0].y0, run[-1].y1
        # Repeated for each class: NumPy multiplies arrays of one shape twice as fast.
        self._class_weights = np.repeat(weights[..., None], num_classes, axis=2)
        columns = run[0].x1 - self._left
        self._sums = np.zeros((len(weights), columns, num_classes), np.float32)
        self._sum_of_weights = np.zeros((len(weights), columns), np.float32)

    def add(self, x: int, y: int, probabilities: np.ndarray) -> None:
        """Adds a tile (tile, tile, C) at (x, y), y at or above `top`; ignores rows above `top`."""
        tile, columns = len(self._weights), self._sums.shape[1]
        cut, x = self._top - y, x - self._left
        if cut < 0 or cut >= tile:
            return  # below or above the run: computed only because it shares a batch
        target = np.s_[: tile - cut, max(x, 0) : x + tile]
        source = np.s_[cut:, max(-x, 0) : columns - x]
        self._sums[target] += probabilities[source] * self._class_weights[source]
        self._sum_of_weights[target] += self._weights[source]

    def advance(self, y: int) -> Iterator[Band]:
        """Moves `top` down to y, at most to the end of the run, and yields the rows passed."""
        tile = len(self._weights)
        while self._top < min(y, self._bottom):
            part = self._run[0]
            rows = min(y, part.y1, self._top + tile) - self._top
            yield self._average(part, rows)
            for sums in (self._sums, self._sum_of_weights):
                sums[: tile - rows] = sums[rows:]
                sums[tile - rows :] = 0
            self._top += rows
            if self._top == part.y1:
                self._run.popleft()

    def _average(self, part: Part, rows: int) -> Band:
        covered = self._sum_of_weights[:rows] > 0
        columns = np.flatnonzero(covered.any(axis=0))
        x0, x1 = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
        covered = covered[:, x0:x1]
        means = self._sums[:rows, x0:x1]
        means /= (self._sum_of_weights[:rows, x0:x1] + ~covered)[..., None]
        x, y = self._left + x0, self._top
        if not np.isfinite(means.sum()):
            raise InputError(
                f"the networks give no finite probabilities around x={x}, y={y} of the slide (in "
                "pixels at their resolution): evaluate them on patches, or set "
                "--config.precision=float32"
            )
        return Band(part, x, y, means, covered)
