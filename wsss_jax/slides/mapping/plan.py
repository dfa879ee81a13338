"""Which tiles a map needs, and the batches in which the networks get them.

The batches follow from the slide and the settings alone, never from what is finished: a tile always
shares its batch with the same others, since a network may round differently in another batch.
Batches are cut from all tiles of a strip (see `parts`), and a resumed run computes again those that
reach into the parts still missing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from wsss_jax.slides.mapping.gate_windows import GateWindows
from wsss_jax.slides.mapping.parts import Layout, Part
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.slides.mapping.tissue import Tissue


class Plan(NamedTuple):
    """The tiles of a map.

    Attributes:
      tiling: how they are cut.
      width, height: of the slide in working pixels.
      tiles: (N, 2) int, their (x, y), row by row.
    """

    tiling: Tiling
    width: int
    height: int
    tiles: np.ndarray

    @classmethod
    def of(cls, tissue: Tissue, tiling: Tiling) -> "Plan":
        """Plans the tiles that have tissue, at least the share that `tiling` asks for."""
        width, height = min(tiling.tile, tissue.width), min(tiling.tile, tissue.height)
        least = tiling.min_tissue_share * tiling.tile**2

        def is_needed(x: int, y: int) -> bool:
            if not tissue.has_tissue(x, y, width, height):
                return False
            return not least or int(tissue.read(x, y, width, height).sum()) >= least

        columns, rows = tiling.place(tissue.width).tolist(), tiling.place(tissue.height).tolist()
        tiles = [(x, y) for y in rows for x in columns if is_needed(x, y)]
        return cls(tiling, tissue.width, tissue.height, np.array(tiles, int).reshape(-1, 2))

    def without(self, left_out: np.ndarray) -> "Plan":
        """Leaves tiles out; (N,) bool."""
        return self._replace(tiles=self.tiles[~left_out])

    def count(self, missing: Sequence[Part] | None = None) -> int:
        """Counts the tiles to compute for `missing` parts, by default all of the slide.

        Tiles of two strips count twice.
        """
        missing = Layout(self.width, self.height).parts if missing is None else missing
        work = self.divide(missing)
        return sum(len(batch) for _, batches, _ in work for batch in batches)

    def count_windows(self) -> int:
        """Counts the windows of the gate that are classified for all of the slide; 0 without."""
        work = self.divide(Layout(self.width, self.height).parts)
        return sum(len(windows.places) for _, _, windows in work if windows)

    def divide(
        self, missing: Sequence[Part]
    ) -> Iterator[tuple[list[Part], list[np.ndarray], GateWindows | None]]:
        """Yields runs of missing parts, each part below the one before, with what they need.

        That is batches of tiles, and the windows of the gate if it has some of its own. A batch is
        (n, 2) int, (x, y) of its tiles in the order of the grid. It has the same tiles whatever is
        missing.
        """
        tiles, tile, size = self.tiles, self.tiling.tile, self.tiling.batch_size
        for run in _group_runs(missing):
            strip = run[0]
            of_strip = tiles[(tiles[:, 0] < strip.x1) & (tiles[:, 0] + tile > strip.x0)]
            batches = [of_strip[i : i + size] for i in range(0, len(of_strip), size)]
            top, bottom = run[0].y0, run[-1].y1
            needed = [b for b in batches if ((b[:, 1] < bottom) & (b[:, 1] + tile > top)).any()]
            windows = None
            if self.tiling.gate_stride:
                windows = GateWindows(of_strip, self.tiling, self.width, self.height)
            yield run, needed, windows


def _group_runs(missing: Sequence[Part]) -> list[list[Part]]:
    runs: list[list[Part]] = []
    for part in missing:
        if runs and (runs[-1][-1].x0, runs[-1][-1].y1) == (part.x0, part.y0):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
