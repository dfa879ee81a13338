"""What can be shown of a map: its classes, their outlines, probabilities, and how sure they are.

A layer is a pyramid of gray tiles. The page gives colors to gray values, so that switching a class
off needs no new tile.
"""

import re
from collections.abc import Sequence

import numpy as np

from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pictures import find_edges
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.tiled_pyramid import TiledPyramid
from wsss_jax.slides.viewing.grid import Box, TileGrid, make_grid

CLASSES, OUTLINES, ENTROPY, MARGIN = "classes", "outlines", "entropy", "margin"
NOTHING = 255  # gray value of layers of probabilities where there is no class
_MOST = 254  # gray value of 1.0
_CLASS = re.compile(r"class-(\d{1,3})")


class MapLayers:
    """The layers of an open map. Several threads may read them."""

    def __init__(
        self,
        labels: TiledPyramid,
        probabilities: TiledPyramid | None,
        frame: MapFrame,
        legend: Legend,
    ):
        """Prepares a map.

        Args:
          labels: the label map.
          probabilities: of each class, if they are stored.
          frame, legend: of the map.
        """
        self._labels, self._probabilities = labels, probabilities
        self._excluded = legend.excluded
        self._grid = make_grid(frame.width, frame.height)
        # Borders are thin at any magnification: outlines have the levels of the slide.
        self._finer = 1
        while 2 * self._finer <= max(frame.scale) * 1.01:
            self._finer *= 2
        self._outlines = make_grid(frame.width * self._finer, frame.height * self._finer)

    def list_names(self) -> list[str]:
        """Lists the layers that there are."""
        if self._probabilities is None:
            return [CLASSES, OUTLINES]
        return [CLASSES, OUTLINES, ENTROPY, MARGIN, *map(name_class, range(self._excluded))]

    def get_grid(self, name: str) -> TileGrid:
        """Returns the tiles of a layer."""
        return self._outlines if name == OUTLINES else self._grid

    def read(self, name: str, level: int, box: Box) -> np.ndarray:
        """Reads a tile.

        Args:
          name: of the layer, one of `list_names`.
          level, box: of its grid.

        Returns:
          (height, width) uint8. Of classes and outlines: label values, the excluded one where there
          is nothing. Of the others: 0..254 for 0..1, `NOTHING` where there is no class. The
          probabilities of a pixel are divided by their sum before entropy and margin are computed,
          since a gate takes some away.

        Raises:
          InputError: the map is damaged there.
        """
        if name == OUTLINES:
            return self._read_outlines(level, box)
        depth = self._grid.last - level
        labels = self._read_labels(depth, box)
        if name == CLASSES:
            return labels
        assert self._probabilities is not None
        if (match := _CLASS.fullmatch(name)) is not None:
            values = self._read(self._probabilities, depth, int(match[1]), box, 0) / 255
        else:
            every = [
                self._read(self._probabilities, depth, c, box, 0) for c in range(self._excluded)
            ]
            measure = compute_entropy if name == ENTROPY else compute_margin
            values = measure(np.stack(every).astype(np.float32))
        gray = np.rint(_MOST * values).astype(np.uint8)
        return np.where(labels == self._excluded, np.uint8(NOTHING), gray)

    def _read_labels(self, depth: int, box: Box) -> np.ndarray:
        return self._read(self._labels, depth, 0, box, self._excluded)

    def _read(
        self, pyramid: TiledPyramid, depth: int, channel: int, box: Box, outside: int
    ) -> np.ndarray:
        """Reads a box of a level, of which a part may be outside of the map."""
        width, height = pyramid.sizes[depth]
        left, top = max(0, box.left), max(0, box.top)
        right, bottom = min(width, box.left + box.width), min(height, box.top + box.height)
        pixels = np.full((box.height, box.width), outside, np.uint8)
        if left < right and top < bottom:
            pixels[top - box.top : bottom - box.top, left - box.left : right - box.left] = (
                pyramid.read(depth, channel, left, top, right - left, bottom - top)
            )
        return pixels

    def _read_outlines(self, level: int, box: Box) -> np.ndarray:
        step = self._outlines.get_step(level)
        depth = max(0, min(step // self._finer, 2**self._grid.last).bit_length() - 1)
        repeats = max(1, self._finer // step)
        # One pixel more on each side: borders between tiles are borders, too.
        first_x, first_y = (box.left - 1) // repeats, (box.top - 1) // repeats
        last_x = -(-(box.left + box.width + 1) // repeats)
        last_y = -(-(box.top + box.height + 1) // repeats)
        labels = self._read_labels(depth, Box(first_x, first_y, last_x - first_x, last_y - first_y))
        labels = labels.repeat(repeats, 0).repeat(repeats, 1)
        x, y = box.left - 1 - first_x * repeats, box.top - 1 - first_y * repeats
        labels = labels[y : y + box.height + 2, x : x + box.width + 2]
        edges = find_edges(labels, self._excluded)
        return np.where(edges, labels, np.uint8(self._excluded))[1:-1, 1:-1]

    def read_point(self, x: int, y: int) -> tuple[int, Sequence[float] | None]:
        """Reads a pixel of the map: its label value, and its probabilities if they are stored."""
        box = Box(x, y, 1, 1)
        label = int(self._read_labels(0, box)[0, 0])
        if self._probabilities is None or label == self._excluded:
            return label, None
        return label, [
            int(self._read(self._probabilities, 0, c, box, 0)[0, 0]) / 255
            for c in range(self._excluded)
        ]


def name_class(value: int) -> str:
    """Names the layer of the probability of a class."""
    return f"class-{value}"


def compute_entropy(weights: np.ndarray) -> np.ndarray:
    """Computes the entropy of each pixel as a share of the largest one possible, log C.

    Args:
      weights: (C, height, width) float32, not negative; they need not add up to 1.

    Returns:
      (height, width) float32, 0 (sure) to 1; 1 where all weights are 0.
    """
    shares = _normalize(weights)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -(shares * logarithms).sum(axis=0) / max(np.log(len(weights)), 1e-9)
    return np.where(weights.sum(axis=0) > 0, entropy, 1).clip(0, 1)


def compute_margin(weights: np.ndarray) -> np.ndarray:
    """Computes by how much the first class leads the second; as `compute_entropy`, 1 = sure."""
    if len(weights) == 1:
        return np.ones(weights.shape[1:], np.float32)
    ordered = np.sort(_normalize(weights), axis=0)
    return ordered[-1] - ordered[-2]


def _normalize(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=0)
    return weights / np.where(total > 0, total, 1)
