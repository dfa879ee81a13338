"""Rotation and scale of one image and its masks, on the device."""

import jax
import jax.numpy as jnp


def resample(
    image: jax.Array,
    masks: jax.Array | None,
    angle: jax.Array | float,
    scale: jax.Array | float,
    excluded: int,
) -> tuple[jax.Array, jax.Array | None]:
    """Rotates and scales about the center in one resampling, masks exactly like the image.

    The image is interpolated bilinearly and goes on beyond its border as its mirror image: tissue
    goes on as tissue, so that neither a wedge of white nor its edge is seen (or counted by
    BatchNorm) where patches of a slide have none. What is beyond the border has no label: masks are
    `excluded` there.

    Args:
      image: (H, W, D) uint8.
      masks: (L, H, W) uint8, or None.
      angle: radians, counterclockwise as seen.
      scale: over 1 enlarges.
      excluded: the value of pixels without a label.

    Returns:
      image (H, W, D) uint8; masks (L, H, W) uint8 of the nearest pixels, or None.
    """
    height, width = image.shape[:2]
    middle = ((height - 1) / 2, (width - 1) / 2)
    y = (jnp.arange(height, dtype=jnp.float32) - middle[0])[:, None]
    x = (jnp.arange(width, dtype=jnp.float32) - middle[1])[None, :]
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    rows = (x * sin + y * cos + middle[0]).astype(jnp.float32)
    columns = (x * cos - y * sin + middle[1]).astype(jnp.float32)
    moved = jnp.round(_interpolate(image.astype(jnp.float32), rows, columns)).astype(image.dtype)
    if masks is None:
        return moved, None
    row = jnp.floor(rows + 0.5).astype(jnp.int32)
    column = jnp.floor(columns + 0.5).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    nearest = masks[:, jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return moved, jnp.where(inside, nearest, jnp.asarray(excluded, masks.dtype))


def _interpolate(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Interpolates (H, W, D) float32 at positions (h, w) in pixels, mirrored at the border."""
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    row = [_mirror(top + i, image.shape[0]) for i in (0, 1)]
    column = [_mirror(left + i, image.shape[1]) for i in (0, 1)]
    upper = image[row[0], column[0]] * (1 - right) + image[row[0], column[1]] * right
    lower = image[row[1], column[0]] * (1 - right) + image[row[1], column[1]] * right
    return upper * (1 - down) + lower * down


def _mirror(index: jax.Array, size: int) -> jax.Array:
    """Folds indices beyond an axis back onto it: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ..."""
    index = index % (2 * size)
    return jnp.minimum(index, 2 * size - 1 - index)
