"""Tiles: where they start, how far apart they lie, and how their pixels are weighted."""

import dataclasses
import functools

import numpy as np

from wsss_jax.errors import InputError

WINDOWS = ("flat", "hann")
_STRIDES = 8  # a chosen stride is a multiple of it


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a map is cut into overlapping tiles.

    Attributes:
      tile: side of a tile, pixels.
      stride: distance of tiles, 1 to `tile` pixels.
      window: weights of a tile's pixels in the average: "flat", or "hann", which gives the center
        of a tile more weight than its border.
      batch_size: tiles that the networks get at a time.
      gate_stride: distance of the windows that phase 1 classifies for the gate, pixels, `stride` to
        `tile`; 0: it classifies the tiles.
      min_tissue_share: a tile with less tissue, as a share of its area, is left out; 0 to 1.

    Raises:
      InputError: a stride that would leave gaps or not move, another window, an empty batch.
    """

    tile: int
    stride: int
    window: str = "flat"
    batch_size: int = 1
    gate_stride: int = 0
    min_tissue_share: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.tile:
            raise InputError(
                f"a stride of {self.stride} for tiles of {self.tile} pixels: set --config.stride "
                f"to 1 to {self.tile}"
            )
        if self.window not in WINDOWS:
            raise InputError(
                f"there is no window {self.window!r}: set --config.window to {' or '.join(WINDOWS)}"
            )
        if self.batch_size < 1:
            raise InputError(
                f"a batch of {self.batch_size} tiles: set --config.batch_size to 1 or more"
            )

    def place(self, length: int) -> np.ndarray:
        """Places tiles along an axis of `length` pixels, see `place_tiles`."""
        return place_tiles(length, self.tile, self.stride)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """The weights of a tile's pixels in the average, (tile, tile) float32, above 0."""
        if self.window == "flat":
            return np.ones((self.tile, self.tile), np.float32)
        profile = np.sin(np.pi * (np.arange(self.tile) + 0.5) / self.tile) ** 2
        return np.outer(profile, profile).astype(np.float32)


def place_tiles(length: int, tile: int, stride: int) -> np.ndarray:
    """Places tiles along an axis at 0, stride, 2 stride, ..., the last one flush with its end.

    Args:
      length, tile, stride: pixels. One tile at 0 covers an axis that is shorter than it.

    Returns:
      (n,) int, where the tiles start, ascending.
    """
    last = max(length - tile, 0)
    return np.append(np.arange(0, last, stride), last)


def choose_stride(tile: int) -> int:
    """Chooses the multiple of 8 just under half a tile, in pixels: tiles overlap by over 50 %."""
    return max((tile - 1) // 2 // _STRIDES * _STRIDES, 1)
