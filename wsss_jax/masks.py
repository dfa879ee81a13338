"""From class activation maps to label maps."""

from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax.models.layers import resize_half_pixel


def label_maps(
    maps: jax.Array, labels: jax.Array, size: Sequence[int], *, absent: str
) -> jax.Array:
    """Pseudo masks: at every pixel the strongest class among those the patch contains.

    The rule of the paper (joint min-max over all classes, absent classes set to 0, argmax) without
    the normalization: it is one increasing map for all classes of a patch and cannot change which
    class is strongest.

    Args:
      maps: (B, C, h, w) class activation maps of either sign.
      labels: (B, C), nonzero where the patch contains the class.
      size: (H, W) of the label maps; the maps are resized bilinearly, half-pixel centers.
      absent: what becomes of the classes that a patch does not contain. "excluded": they never
        win. "zero": as in the released code they score what the joint minimum scores, so that in a
        patch of one class the pixels of its minimum can go to an absent one.

    Returns:
      (B, H, W) uint8 class indices. Of a patch without any label nothing is known: it is C,
      excluded, throughout, or class 0 with "zero".
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
    """Phase-1 segmentation: the strongest map among the classes the classifier predicts.

    Joint min-max is left out for the reason given at `label_maps`.

    Args:
      cams: (B, C, h, w) class activation maps, clipped at zero (released code) or not (paper).
      probability: (B, C) predicted probabilities.
      size: (H, W) of the result.
      threshold: classes with a probability at or below it are removed.

    Returns:
      (B, H, W) uint8 class indices. Where clipped maps are zero for every class left, and where no
      class is left, the index is 0, as in the released code.
    """
    maps = resize_maps(cams, size)
    kept = (probability > threshold)[:, :, None, None]
    floor = jnp.minimum(maps.min(axis=(1, 2, 3), keepdims=True), 0)
    return jnp.where(kept, maps, floor).argmax(axis=1).astype(jnp.uint8)


def white_background(image: np.ndarray, threshold: int = 200, min_area: int = 50) -> np.ndarray:
    """White background of a patch: 4-connected areas brighter than a grey value.

    Args:
      image: (H, W, 3) uint8 RGB.
      threshold: grey value (OpenCV's RGB to grey, 0-255) a pixel must exceed.
      min_area: pixels; smaller areas are tissue.

    Returns:
      (H, W) bool, on the host.
    """
    bright = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) > threshold).astype(np.uint8)
    _, areas, statistics, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
    large = statistics[:, cv2.CC_STAT_AREA] >= min_area
    large[0] = False  # component 0 is everything that is not bright
    return large[areas]


def resize_maps(maps: jax.Array, size: Sequence[int]) -> jax.Array:
    """Maps (B, C, h, w) brought to (B, C, *size) bilinearly, half-pixel centers."""
    return jnp.moveaxis(resize_half_pixel(jnp.moveaxis(maps, 1, -1), size), -1, 1)
