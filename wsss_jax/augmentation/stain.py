"""Amounts of the stains of one image, changed in optical density on the device."""

import jax
import jax.numpy as jnp
import numpy as np

# Optical density in red, green and blue of haematoxylin, eosin, and a residual (DAB): Ruifrok and
# Johnston 2001, "Quantification of histochemical staining by color deconvolution", as in
# scikit-image.
DENSITIES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNMIXING = np.linalg.inv(DENSITIES).astype(np.float32)
_MIXING = DENSITIES.astype(np.float32)
_DARKEST = 1e-6  # transmitted share of light that black counts as: the logarithm of 0 is none


def jitter_stains(
    image: jax.Array, factors: jax.Array | np.ndarray, offsets: jax.Array | np.ndarray
) -> jax.Array:
    """Changes the amounts of haematoxylin, eosin and residual: amount * factor + offset.

    The augmentation of Tellez et al. 2019, "Quantifying the effects of data augmentation and stain
    color normalization in convolutional neural networks". An image is taken apart by its optical
    density, - log10 of the transmitted share of light; amounts may be negative, so that factors 1
    and offsets 0 give the image back.

    Args:
      image: (H, W, 3) float32, RGB of 0 to 1.
      factors: (3,).
      offsets: (3,), optical density.

    Returns:
      (H, W, 3) float32 of 0 to 1.
    """
    density = -jnp.log10(jnp.maximum(image, _DARKEST))
    amounts = _multiply(density, _UNMIXING) * factors + offsets
    return jnp.clip(10 ** -_multiply(amounts, _MIXING), 0, 1)


def _multiply(pixels: jax.Array, matrix: np.ndarray) -> jax.Array:
    """Multiplies (H, W, 3) with (3, 3); as sums, since matrix units round to few bits."""
    return sum(pixels[..., i, None] * matrix[i] for i in range(3))  # type: ignore[return-value]
