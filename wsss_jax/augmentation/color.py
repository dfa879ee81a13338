"""Color of one image on the device, each step as torchvision defines it.

Images are (H, W, 3) float32, RGB of 0 to 1, and so are results.
"""

import jax
import jax.numpy as jnp
import numpy as np

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)  # ITU-R BT.601, to the digits of torchvision


def jitter_color(
    image: jax.Array,
    brightness: jax.Array | float,
    contrast: jax.Array | float,
    saturation: jax.Array | float,
    hue: jax.Array | float,
) -> jax.Array:
    """Adjusts brightness, contrast, saturation and hue, always in this order.

    torchvision's `ColorJitter` draws the order, too; its four steps are these.

    Args:
      image: (H, W, 3).
      brightness, contrast, saturation: factors; 1 changes nothing.
      hue: share of the circle of colors that they are turned by; 0 changes nothing.
    """
    image = adjust_brightness(image, brightness)
    image = adjust_contrast(image, contrast)
    image = adjust_saturation(image, saturation)
    return adjust_hue(image, hue)


def adjust_brightness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Multiplies by a factor, clipped to 0..1."""
    return jnp.clip(image * factor, 0, 1)


def adjust_contrast(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Moves all values away from (or to) the mean gray of the image by a factor, clipped."""
    mean = _convert_to_gray(image).mean()
    return jnp.clip(mean + factor * (image - mean), 0, 1)


def adjust_saturation(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Moves each pixel away from (or to) its own gray by a factor, clipped."""
    gray = _convert_to_gray(image)
    return jnp.clip(gray + factor * (image - gray), 0, 1)


def adjust_hue(image: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Turns the hue (of HSV) by a share of the circle; gray has none and stays."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(axis=-1)
    chroma = value - image.min(axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    # In sixths of the circle, from the strongest color on.
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turn

    def from_hue(start: int) -> jax.Array:
        position = (start + sixths) % 6
        return value - chroma * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)

    return jnp.stack([from_hue(start) for start in (5, 3, 1)], axis=-1)


def _convert_to_gray(image: jax.Array) -> jax.Array:
    """Weighs the colors into gray, (H, W, 1)."""
    return (image * _LUMA).sum(axis=-1, keepdims=True)
