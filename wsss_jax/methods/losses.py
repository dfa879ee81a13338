"""The losses, each a function of arrays."""

import jax
import jax.numpy as jnp
import ml_collections
import optax


def multilabel_soft_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the loss of each patch: binary cross entropy of logits and labels (B, C), mean of C.

    Returns:
      (B,) float32.
    """
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)


def weighted_cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array
) -> jax.Array:
    """Computes the loss of each patch: binary cross entropy of each class times its weight.

    Args:
      logits: (B, C).
      labels: (B, C), 0 or 1.
      class_weights: (C,).

    Returns:
      (B,) float32, the means over the classes, which are not divided by the sum of the weights.
    """
    return (optax.sigmoid_binary_cross_entropy(logits, labels) * class_weights).mean(axis=-1)


def layer_losses(
    logits: jax.Array,
    masks: jax.Array,
    weight: jax.Array,
    pixels: jax.Array,
    settings: ml_collections.ConfigDict,
) -> jax.Array:
    """Computes the loss with the mask of each layer, the terms of Eq. 13.

    Per layer it is the mean of the pixel losses over the counted pixels of the global batch, plus
    `settings.dice` x `dice_losses`, where an image counts by its counted pixels. The Dice loss is
    of one image alone, so that no total but the pixels is needed.

    Args:
      logits: (B, H, W, C) float32.
      masks: (B, L, H, W) uint8, class indices and C for white or excluded.
      weight: (B,), 0 for examples that only fill the batch, else 1.
      pixels: (L,) counted in the global batch, sums of `count_pixels`.
      settings: the fields `config.loss`. `white` "excluded" leaves pixels with C out; "logit"
        counts them, with a further logit that is `white_logit` where the last layer's mask is C and
        0 elsewhere (released code).

    Returns:
      (L,) float32: of a part of the global batch its shares, which add up to the mean.
    """
    num_classes = logits.shape[-1]
    counted = _is_counted(masks, weight, num_classes, settings)
    losses = _cross_entropies(logits, masks, settings)
    if settings.kind == "symmetric":
        losses = symmetric_cross_entropies(losses, *settings.symmetric_weights)
    sums = (losses * counted).sum(axis=(0, 2, 3))
    if settings.dice:
        by_image = dice_losses(logits, masks, counted) * counted.sum(axis=(2, 3))
        sums += settings.dice * by_image.sum(axis=0)
    return sums / jnp.maximum(pixels, 1)


def _cross_entropies(
    logits: jax.Array, masks: jax.Array, settings: ml_collections.ConfigDict
) -> jax.Array:
    """Returns (B, L, H, W): -log of the probability that a pixel has for the class of its mask."""
    num_classes = logits.shape[-1]
    masks = masks.astype(jnp.int32)
    if settings.white == "logit":
        further = jnp.where(masks[:, -1] == num_classes, settings.white_logit, 0.0)
        logits = jnp.concatenate([logits, further[..., None]], axis=-1)
    else:
        masks = jnp.minimum(masks, num_classes - 1)
    log_probability = jax.nn.log_softmax(logits)[:, None]
    return -jnp.take_along_axis(log_probability, masks[..., None], axis=-1)[..., 0]


def symmetric_cross_entropies(
    cross_entropy: jax.Array, forward: float, reverse: float
) -> jax.Array:
    """Adds the reverse cross entropy: forward x -log p + reverse x (1 - p), p of the mask's class.

    Symmetric cross entropy (Wang et al. 2019): alpha x CE + beta x RCE, where RCE = -A (1 - p) for
    one-hot labels and A stands for log 0. `forward` is alpha, `reverse` is -A beta. The second term
    is bounded, so that a wrong label cannot pull without end.

    Args:
      cross_entropy: any shape, float32.
      forward: weight of the cross entropy.
      reverse: weight of 1 - p.

    Returns:
      Like `cross_entropy`.
    """
    return forward * cross_entropy - reverse * jnp.expm1(-cross_entropy)


def dice_losses(logits: jax.Array, masks: jax.Array, counted: jax.Array) -> jax.Array:
    """Computes the Dice loss of each image and layer, mean of the classes that its mask has.

    Of a class 1 - 2 sum(p g) / (sum(p) + sum(g)) (Sudre et al. 2017), sums over the counted pixels
    of one image, p its probability and g 1 where the mask has it. A class without pixels in the
    mask has a Dice loss of 1 whatever the network says, so it is left out; with the softmax, the
    classes that are there are the lower for it.

    Args:
      logits: (B, H, W, C).
      masks: (B, L, H, W) class indices; C and more belong to no class.
      counted: (B, L, H, W), 1 for pixels that the loss counts, else 0.

    Returns:
      (B, L) float32; 1 where no pixel counts.
    """
    axes = (2, 3)
    predicted = jax.nn.softmax(logits)[:, None] * counted[..., None]
    true = jax.nn.one_hot(masks, logits.shape[-1], dtype=predicted.dtype) * counted[..., None]
    overlap = (predicted * true).sum(axes)
    present = true.any(axes)
    # at least 1 where the class is present
    total = jnp.maximum((predicted + true).sum(axes), 1)
    dice = jnp.where(present, 2 * overlap / total, 0).sum(axis=-1)
    return 1 - dice / jnp.maximum(present.sum(axis=-1), 1)


def count_pixels(
    masks: jax.Array, weight: jax.Array, num_classes: int, settings: ml_collections.ConfigDict
) -> jax.Array:
    """Counts the pixels of each layer's masks that `layer_losses` counts: (L,) float32."""
    return _is_counted(masks, weight, num_classes, settings).sum(axis=(0, 2, 3))


def _is_counted(
    masks: jax.Array, weight: jax.Array, num_classes: int, settings: ml_collections.ConfigDict
) -> jax.Array:
    """Returns (B, L, H, W): 1 for every pixel of the masks that the loss counts, else 0."""
    counted = jnp.broadcast_to(weight[:, None, None, None], masks.shape)
    return counted if settings.white == "logit" else counted * (masks < num_classes)
