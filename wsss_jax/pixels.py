"""Pixels on the device: scaling, and the augmentation of training patches."""

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


def augment(
    rng: jax.Array,
    image: jax.Array,
    masks: jax.Array | None,
    config: ml_collections.ConfigDict,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """Flips and blurs each example by its own random numbers.

    Args:
      rng: key of the step, the same on all devices.
      image: (B, H, W, 3) uint8.
      masks: (B, L, H, W) uint8 flipped along, or None.
      config: the fields `config.augment`.
      position: (B,) places in the global batch, so that the random numbers of an example do not
        depend on the device that holds it.

    Returns:
      image (B, H, W, 3) uint8, masks.
    """

    def augment_one(key: jax.Array, image: jax.Array, masks: jax.Array | None):
        horizontal, vertical, blur, sigma = jax.random.uniform(key, (4,))
        for axis, number, probability in (
            (1, horizontal, config.flip_horizontal),
            (0, vertical, config.flip_vertical),
        ):
            flip = number < probability
            image = jnp.where(flip, jnp.flip(image, axis), image)
            if masks is not None:
                masks = jnp.where(flip, jnp.flip(masks, axis + 1), masks)
        if config.blur > 0:
            blurred = gaussian_blur(image, sigma * config.blur_radius)
            image = jnp.where(blur < config.blur, blurred, image)
        return image, masks

    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, position)
    return jax.vmap(augment_one)(keys, image, masks)


def gaussian_blur(image: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Blurs (H, W, C) uint8 as PIL's `GaussianBlur(sigma)` does, for sigma up to 1.4 pixels.

    Along each axis three box filters [w, 1, w] / (1 + 2 w) whose variances add up to sigma ** 2;
    the border is repeated.
    """
    variance = jnp.square(sigma) / 3
    side = variance / (2 * (1 - variance))
    x = image.astype(jnp.float32)
    for axis in (0, 1):
        size = x.shape[axis]
        padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        for _ in range(3):
            padded = jnp.pad(x, padding, mode="edge")
            before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
            after = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
            x = (x + side * (before + after)) / (1 + 2 * side)
    return jnp.round(x).astype(jnp.uint8)
