"""The losses, each a function of arrays."""

import jax
import jax.numpy as jnp
import optax


def multilabel_soft_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the loss of each patch: binary cross entropy of logits and labels (B, C), mean of C.

    Returns:
      (B,) float32.
    """
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)


def layer_cross_entropies(
    logits: jax.Array,
    masks: jax.Array,
    weight: jax.Array,
    pixels: jax.Array,
    white_logit: float | None = None,
) -> jax.Array:
    """Computes the cross entropy with the mask of each layer, the terms of Eq. 13.

    Args:
      logits: (B, H, W, C) float32.
      masks: (B, L, H, W) uint8, class indices and C for white or excluded.
      weight: (B,), 0 for examples that only fill the batch.
      pixels: (L,) counted in the global batch, sums of `count_pixels`.
      white_logit: None leaves pixels with C out; a number counts them, with a further logit that is
        this number where the last layer's mask is C and 0 elsewhere (released code).

    Returns:
      (L,) float32: of a part of the global batch its shares, which add up to the mean.
    """
    num_classes = logits.shape[-1]
    counted = _is_counted(masks, weight, num_classes, white_logit)
    masks = masks.astype(jnp.int32)
    if white_logit is not None:
        further = jnp.where(masks[:, -1] == num_classes, white_logit, 0.0)
        logits = jnp.concatenate([logits, further[..., None]], axis=-1)
    else:
        masks = jnp.minimum(masks, num_classes - 1)
    log_probability = jax.nn.log_softmax(logits)[:, None]
    cross_entropy = -jnp.take_along_axis(log_probability, masks[..., None], axis=-1)[..., 0]
    return (cross_entropy * counted).sum(axis=(0, 2, 3)) / jnp.maximum(pixels, 1)


def count_pixels(
    masks: jax.Array, weight: jax.Array, num_classes: int, white_logit: float | None = None
) -> jax.Array:
    """Counts the pixels of each layer's masks that `layer_cross_entropies` counts: (L,) float32."""
    return _is_counted(masks, weight, num_classes, white_logit).sum(axis=(0, 2, 3))


def _is_counted(
    masks: jax.Array, weight: jax.Array, num_classes: int, white_logit: float | None
) -> jax.Array:
    """Returns (B, L, H, W): 1 for every pixel of the masks that the loss counts, else 0."""
    counted = jnp.broadcast_to(weight[:, None, None, None], masks.shape)
    return counted * (masks < num_classes) if white_logit is None else counted
