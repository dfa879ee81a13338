"""Pixels on the device: from the values of files to what networks see."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

_RECIPROCAL_HIGH = np.float32(round(2**22 / 255) / 2**22)  # 1 / 255 to 15 bits
_RECIPROCAL_LOW = np.float32(1 / 255 - float(_RECIPROCAL_HIGH))


def scale(image: jax.Array, model: ml_collections.ConfigDict) -> jax.Array:
    """Scales uint8 (B, H, W, 3) to float32 (x / 255 - mean) / std, as `config.model` sets them."""
    mean, std = jnp.asarray(model.mean), jnp.asarray(model.std)
    x = image.astype(jnp.float32)
    # XLA turns a division into x * (1 / 255), which rounds half of all values differently. In two
    # parts, of which the first product is exact, the result equals that of a division.
    x = x * _RECIPROCAL_HIGH + x * _RECIPROCAL_LOW
    return (x - mean) / std
