"""Windows of the gate on a grid of their own, coarser than that of the tiles.

Phase 1 classifies a window once. A tile takes the probabilities of the windows around it, up to
four, interpolated bilinearly by where it starts between them: their log odds, which closes other
classes than its own classification would less often than the nearest window does. A window has the
size of a tile.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.slides.mapping.tiling import Tiling, place_tiles

_LEAST = 1e-6  # of probabilities of which odds are taken


class Step(NamedTuple):
    """A batch of places (n, 2) int, (x, y): of tiles, or of the windows with that number."""

    places: np.ndarray
    windows: int | None = None


class GateWindows:
    """The windows that the tiles of a strip need, and what phase 1 sees in them.

    They are classified in batches which, as those of tiles, are the same whatever is missing.

    Attributes:
      places: (M, 2) int, (x, y) of the windows, row by row.
    """

    def __init__(self, tiles: np.ndarray, tiling: Tiling, width: int, height: int):
        """Finds the windows.

        Args:
          tiles: (N, 2) int, (x, y) of all tiles of the strip.
          tiling: how tiles and windows are cut; `gate_stride` is over 0.
          width, height: of the slide in working pixels.
        """
        columns, rows = (
            place_tiles(length, tiling.tile, tiling.gate_stride) for length in (width, height)
        )
        x, across = _weigh(columns, tiles[:, 0])
        y, down = _weigh(rows, tiles[:, 1])
        corners = [(i, j) for j in range(2) for i in range(2)]
        weights = np.stack([down[:, j] * across[:, i] for i, j in corners], axis=1)
        places = np.stack([np.stack([y[:, j], x[:, i]], axis=-1) for i, j in corners], axis=1)
        is_used = weights > 0
        used, of_tiles = np.unique(places[is_used], axis=0, return_inverse=True)
        self.places = used[:, ::-1]
        self._size = tiling.batch_size
        windows = np.zeros(weights.shape, int)
        windows[is_used] = of_tiles.reshape(-1)
        self._of_tiles = {
            place: (found[mask].tolist(), share[mask])
            for place, found, share, mask in zip(
                map(tuple, tiles.tolist()), windows, weights, is_used
            )
        }
        self._presence: dict[int, Any] = {}  # (batch_size, C) of the batches that were classified

    def order(self, batches: Iterable[np.ndarray]) -> Iterator[Step]:
        """Yields batches of tiles, and before each the windows that it is the first to need."""
        planned: set[int] = set()
        for batch in batches:
            of_batch = [self._of_tiles[place][0] for place in map(tuple, batch.tolist())]
            needed = {window // self._size for windows in of_batch for window in windows} - planned
            for number in sorted(needed):
                yield Step(self.places[number * self._size : (number + 1) * self._size], number)
            planned |= needed
            yield Step(batch)

    def keep(self, number: int, presence: Any) -> None:
        """Keeps what phase 1 sees in a batch of windows, (batch_size, C) or what becomes it."""
        self._presence[number] = presence

    def look_up(self, batch: np.ndarray) -> np.ndarray:
        """Looks up the probabilities of classes for tiles, (batch_size, C); 0 for the filling."""
        rows = [self._interpolate(*self._of_tiles[place]) for place in map(tuple, batch.tolist())]
        presence = np.zeros((self._size, len(rows[0])), np.float32)
        presence[: len(rows)] = rows
        return presence

    def _interpolate(self, windows: list[int], weights: np.ndarray) -> np.ndarray:
        """Interpolates probabilities (C,) of windows whose weights add up to 1."""
        found = np.stack([self._read(window) for window in windows])
        if len(windows) == 1:
            return found[0]
        found = found.astype(np.float64).clip(_LEAST, 1 - _LEAST)
        return 1 / (1 + np.exp(-(weights @ np.log(found / (1 - found)))))

    def _read(self, window: int) -> np.ndarray:
        number, row = divmod(window, self._size)
        self._presence[number] = np.asarray(self._presence[number])
        return self._presence[number][row]


def _weigh(starts: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the starts before and after each place, and their weights in a linear interpolation.

    Args:
      starts: (M,) int, ascending, from at or before the first place to at or after the last.
      places: (N,) int.

    Returns:
      (N, 2) int starts, and (N, 2) float64 weights, which add up to 1.
    """
    after = np.searchsorted(starts, places)
    before = starts[np.where(starts[after] == places, after, after - 1)]
    after = starts[after]
    share = (places - before) / np.maximum(after - before, 1)
    return np.stack([before, after], axis=1), np.stack([1 - share, share], axis=1)
