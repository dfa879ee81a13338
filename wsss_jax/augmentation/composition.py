"""Patches composed of several, on the host: mosaics, and a region pasted on another patch.

Pure functions of arrays and a generator of random numbers; `wsss_jax.composites` chooses the
patches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

# The outline of a pasted region: waves 1 to 4 times around it ...
_WAVES = np.arange(1, 5)
# ... together under 0.84 of its mean radius, so that it never crosses itself.
_HEIGHTS = 0.4 / _WAVES


class Piece(NamedTuple):
    """An image and its masks.

    Attributes:
      image: (H, W, 3) uint8.
      masks: (L, H, W) uint8.
    """

    image: np.ndarray
    masks: np.ndarray


class Sizes(NamedTuple):
    """How large the parts of composed patches are.

    Attributes:
      split: least share (0..0.5) of a side on each side of the point that quarters a mosaic.
      radius: mean radius of a pasted region, from and to, shares of the patch's side.
      scale: of the tissue in a part, from and to; over 1 enlarges.
    """

    split: float
    radius: tuple[float, float]
    scale: tuple[float, float]


def make_mosaic(rng: np.random.Generator, pieces: Sequence[Piece], sizes: Sizes) -> Piece:
    """Composes a patch of 2 x 2 quarters around a random point, each cut out of another patch.

    As in PistoSeg (Fang et al. 2023, "Weakly-supervised semantic segmentation for histopathology
    images based on dataset synthesis and feature consistency constraint").

    Args:
      rng: draws the point and the cuts.
      pieces: four of one size: top left, top right, bottom left, bottom right.
      sizes: of the parts.
    """
    height, width = pieces[0].image.shape[:2]
    row, column = (_draw_split(rng, side, sizes.split) for side in (height, width))
    cuts = [
        _cut(rng, piece, (bottom - top, right - left), sizes.scale)
        for piece, (top, bottom, left, right) in zip(
            pieces,
            (
                (0, row, 0, column),
                (0, row, column, width),
                (row, height, 0, column),
                (row, height, column, width),
            ),
            strict=True,
        )
    ]
    images, masks = zip(*cuts)

    def join(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
        """Joins four quarters whose rows are the `axis`."""
        upper, lower = (np.concatenate(arrays[i : i + 2], axis + 1) for i in (0, 2))
        return np.concatenate([upper, lower], axis)

    return Piece(join(images, 0), join(masks, 1))


def paste_region(rng: np.random.Generator, ground: Piece, pasted: Piece, sizes: Sizes) -> Piece:
    """Pastes what is inside a random closed curve of one patch on another of the same size."""
    shape = ground.image.shape[:2]
    cut = _cut(rng, pasted, shape, sizes.scale)
    inside = draw_region(rng, shape, sizes.radius)
    return Piece(
        np.where(inside[..., None], cut.image, ground.image),
        np.where(inside, cut.masks, ground.masks),
    )


def draw_region(
    rng: np.random.Generator, shape: tuple[int, ...], radius: tuple[float, float]
) -> np.ndarray:
    """Draws what is inside a random closed curve.

    The curve is a circle whose radius waves along it: r (1 + sum of h_k cos(k angle + phase_k)).
    Its center is anywhere on the patch, so a part of it may be beyond the border.

    Args:
      rng: draws center, mean radius and waves.
      shape: (H, W).
      radius: the mean radius, from and to, shares of the shorter side.

    Returns:
      (H, W) bool.
    """
    row, column = rng.uniform(0, shape)
    mean = rng.uniform(*radius) * min(shape)
    heights = rng.uniform(0, _HEIGHTS)
    phases = rng.uniform(0, 2 * np.pi, len(_WAVES))
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = y - row, x - column
    waves = np.cos(np.arctan2(y, x)[..., None] * _WAVES + phases) @ heights
    return np.hypot(y, x) <= mean * (1 + waves)


def _draw_split(rng: np.random.Generator, side: int, least: float) -> int:
    """Draws where a side is split: at least that share, and a pixel, on both sides."""
    margin = min(max(round(least * side), 1), side // 2)
    return int(rng.integers(margin, side - margin + 1))


def _cut(
    rng: np.random.Generator, piece: Piece, shape: tuple[int, ...], scale: tuple[float, float]
) -> Piece:
    """Cuts (H, W) pixels out of a larger or equal piece: shifted, flipped and scaled at random."""
    sides = piece.image.shape[:2]
    # No less than what fits into the piece.
    factor = max(np.exp(rng.uniform(*np.log(scale))), *np.divide(shape, sides))
    cut = [min(max(round(part / factor), 1), side) for part, side in zip(shape, sides)]
    top, left = (int(rng.integers(side - part + 1)) for part, side in zip(cut, sides))
    flips = [slice(None, None, -1) if flip else slice(None) for flip in rng.random(2) < 0.5]

    def take(layer: np.ndarray, interpolation: int) -> np.ndarray:
        part = layer[top : top + cut[0], left : left + cut[1]][flips[0], flips[1]]
        return cv2.resize(
            np.ascontiguousarray(part), (shape[1], shape[0]), interpolation=interpolation
        )

    masks = [take(mask, cv2.INTER_NEAREST_EXACT) for mask in piece.masks]
    return Piece(take(piece.image, cv2.INTER_LINEAR), np.stack(masks))
