"""From activation maps to the class maps of HistoSegNet: scores, background, subtraction."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from wsss_jax.masks import resize_maps

_LEAST_MAXIMUM = 1e-7  # of a map that is divided by it, as in the released code
_TRUNCATION = 4  # where the blur ends, in standard deviations, as SciPy's `gaussian_filter`


class Background(NamedTuple):
    """How bright pixels become a map of background.

    Attributes:
      weight: of the map; 0: there is no background.
      slope: of the sigmoid, per gray value of 0 to 255.
      level: gray value where the sigmoid is 1/2.
      sigma: standard deviation of the blur, pixels; 0: none.
      exceptions: indices of tissue classes that are bright themselves, such as fat.
    """

    weight: float = 0.75
    slope: float = 4.0
    level: float = 240.0
    sigma: float = 2.0
    exceptions: Sequence[int] = ()

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Background":
        """Reads the fields `config.background`."""
        return cls(**{name: config[name] for name in cls._fields})


def find_present(presence: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Finds the classes of patches: (B, C) bool.

    Args:
      presence: (B, C) probabilities.
      thresholds: (C,); a class is present from its threshold on. Where no class reaches it, the one
        of the highest probability is, without which nothing could be segmented.
    """
    reached = presence >= thresholds
    highest = jnp.arange(presence.shape[1]) == presence.argmax(axis=1, keepdims=True)
    return jnp.where(reached.any(axis=1, keepdims=True), reached, highest)


def scale_maps(
    activations: jax.Array, presence: jax.Array, is_present: jax.Array, size: Sequence[int]
) -> jax.Array:
    """Scales Grad-CAM to class maps between 0 and the probability of the class.

    Args:
      activations: (B, C, h, w), of either sign.
      presence: (B, C) probabilities.
      is_present: (B, C) bool; the maps of other classes are 0.
      size: (H, W) of the maps; bilinear, half-pixel centers.

    Returns:
      (B, C, H, W) float32.
    """
    maps = jax.nn.relu(resize_maps(activations, size))
    maps = maps / jnp.maximum(maps.max(axis=(2, 3), keepdims=True), _LEAST_MAXIMUM)
    return maps * jnp.where(is_present, presence, 0)[:, :, None, None]


def make_background(image: jax.Array, maps: jax.Array, background: Background) -> jax.Array:
    """Makes the map of the background: bright pixels, but not those of the exceptions.

    Args:
      image: (B, H, W, 3), values of 0 to 255.
      maps: (B, C, H, W) of the tissue classes.
      background: how.

    Returns:
      (B, 1, H, W), 0 to 1.
    """
    # Of the sum of the channels, which is exact, to lose no digits near the level.
    above = image.astype(maps.dtype).sum(axis=-1) - 3 * background.level
    white = background.weight * jax.nn.sigmoid(background.slope / 3 * above)
    if background.sigma:
        rows, columns = (
            jnp.asarray(_blur_matrix(side, background.sigma), white.dtype)
            for side in white.shape[1:]
        )
        exact = lax.Precision.HIGHEST
        white = jnp.einsum("yh,bhw,xw->byx", rows, white, columns, precision=exact)
    if background.exceptions:
        white = white - maps[:, np.asarray(background.exceptions)].max(axis=1)
    return jnp.clip(white, 0, 1)[:, None]


def _blur_matrix(side: int, sigma: float) -> np.ndarray:
    """Returns the (side, side) matrix of a Gaussian blur; lines go on as their mirror images."""
    radius = int(_TRUNCATION * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    target = np.arange(side)[:, None]
    source = (target + offsets) % (2 * side)
    source = np.minimum(source, 2 * side - 1 - source)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.broadcast_to(target, source.shape), source), weights)
    return matrix


def subtract_classes(maps: jax.Array) -> jax.Array:
    """Leaves each pixel to its strongest class: the lead over the second, 0 in all other maps.

    Args:
      maps: (B, D, H, W), none negative.

    Returns:
      (B, D, H, W).
    """
    strongest = jnp.arange(maps.shape[1])[:, None, None] == maps.argmax(axis=1)[:, None]
    second = jnp.where(strongest, 0, maps).max(axis=1, keepdims=True)
    return jnp.where(strongest, maps - second, 0)
