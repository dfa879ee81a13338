"""Label maps from class activation maps, and white background."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax.models.layers import resize_half_pixel

_LEAST = 1e-12  # of differences and sums of maps, against division by zero


def label_maps(
    maps: jax.Array, labels: jax.Array, size: Sequence[int], *, absent: str
) -> jax.Array:
    """Makes pseudo masks: the strongest class at every pixel among those the patch contains.

    The rule of the paper (joint min-max over all classes, absent classes set to 0, argmax) without
    the normalization, which is the same increasing function for all classes of a patch and cannot
    change which class is the strongest.

    Args:
      maps: (B, C, h, w) class activation maps of either sign.
      labels: (B, C), nonzero where the patch contains the class.
      size: (H, W) of the label maps; the maps are resized bilinearly, half-pixel centers.
      absent: the score of classes that a patch does not contain. "excluded": they never win.
        "zero": the joint minimum, as in the released code; in a patch of one class, the
        pixels of its minimum can then go to an absent class.

    Returns:
      (B, H, W) uint8 class indices. A patch without any label is C, excluded, everywhere, or class
      0 with "zero".
    """
    maps = resize_maps(maps, size)
    present = labels[:, :, None, None] != 0
    if absent == "zero":
        floor = maps.min(axis=(1, 2, 3), keepdims=True)
        return jnp.where(present, maps, floor).argmax(axis=1).astype(jnp.uint8)
    maps = jnp.where(present, maps, -jnp.inf)
    strongest = jnp.where(labels.any(axis=1)[:, None, None], maps.argmax(axis=1), maps.shape[1])
    return strongest.astype(jnp.uint8)


def segmentation(
    cams: jax.Array, probability: jax.Array, size: Sequence[int], threshold: float = 0.25
) -> jax.Array:
    """Segments by phase 1: the strongest map among the classes that the classifier predicts.

    There is no joint min-max, for the reason given at `label_maps`.

    Args:
      cams: (B, C, h, w) class activation maps, clipped at zero (released code) or not (paper).
      probability: (B, C) predicted probabilities.
      size: (H, W) of the result.
      threshold: classes with a probability at or below it are removed.

    Returns:
      (B, H, W) uint8 class indices. The index is 0, as in the released code, where clipped maps
      are zero for all remaining classes, and where no class remains.
    """
    maps = resize_maps(cams, size)
    is_predicted = (probability > threshold)[:, :, None, None]
    floor = jnp.minimum(maps.min(axis=(1, 2, 3), keepdims=True), 0)
    return jnp.where(is_predicted, maps, floor).argmax(axis=1).astype(jnp.uint8)


def probabilities(maps: jax.Array, present: jax.Array, size: Sequence[int]) -> jax.Array:
    """Makes probabilities of class activation maps, for what refines them by the image.

    The classes that are present share a pixel in proportion to their maps after a joint min-max
    over these classes and all pixels, the normalization of the paper. The strongest class is that
    of the maps. Where all maps are at the minimum, the classes have equal shares.

    Args:
      maps: (B, C, h, w) class activation maps of either sign.
      present: (B, C), nonzero where a patch has, or is predicted to have, the class.
      size: (H, W) of the result; the maps are resized as for `label_maps`.

    Returns:
      (B, H, W, C) float32 with sum 1 at every pixel; 0 for classes that are not present, and of a
      patch without any.
    """
    maps = jnp.moveaxis(resize_maps(maps, size), 1, -1)
    is_present = jnp.broadcast_to((present != 0)[:, None, None, :], maps.shape)
    low, high = (
        find(jnp.where(is_present, maps, other), axis=(1, 2, 3), keepdims=True)
        for find, other in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    )
    scores = jnp.where(is_present, (maps - low) / jnp.maximum(high - low, _LEAST), 0)
    scores = jnp.where(is_present, jnp.maximum(scores, _LEAST), 0)
    return scores / jnp.maximum(scores.sum(axis=-1, keepdims=True), _LEAST)


def has_all_classes(mask: np.ndarray, label: np.ndarray, min_share: float) -> bool:
    """Tells whether each class of a patch's label has its share of the mask.

    Args:
      mask: (H, W) uint8, class indices and C for white or excluded.
      label: (C,), nonzero where the patch contains the class.
      min_share: of the pixels that are not C.
    """
    counts = np.bincount(mask.reshape(-1), minlength=len(label) + 1)[:-1]
    least = min_share * max(counts.sum(), 1)  # of white patches nothing is known
    return bool((counts[label != 0] >= least).all())


class WhiteRule(NamedTuple):
    """What counts as white background.

    Attributes:
      threshold: gray value (OpenCV's RGB to gray, 0 to 255) that a pixel must exceed.
      min_area: pixels; smaller areas are tissue.
    """

    threshold: int = 200
    min_area: int = 50


def find_white_background(image: np.ndarray, rule: WhiteRule | None = None) -> np.ndarray:
    """Finds white background: 4-connected areas brighter than a gray value.

    Args:
      image: (H, W, 3) uint8 RGB.
      rule: `WhiteRule()` by default.

    Returns:
      (H, W) bool, on the host.
    """
    rule = rule or WhiteRule()
    bright = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) > rule.threshold).astype(np.uint8)
    _, areas, statistics, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
    large = statistics[:, cv2.CC_STAT_AREA] >= rule.min_area
    large[0] = False  # component 0 is everything that is not bright
    return large[areas]


def resize_maps(maps: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes maps (B, C, h, w) to (B, C, *size) bilinearly, half-pixel centers."""
    return jnp.moveaxis(resize_half_pixel(jnp.moveaxis(maps, 1, -1), size), -1, 1)
