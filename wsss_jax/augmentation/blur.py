"""Gaussian blur of one image on the device."""

import jax
import jax.numpy as jnp


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
