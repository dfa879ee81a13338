"""Progressive Dropout Attention (Han et al. 2022, section III-A2)."""

import jax
import jax.numpy as jnp
from jax import lax

# Activations under it say nothing: as logits they would move a probability by 0.00025. The bound
# also limits the gradient of the division, which is that of the attention times its inverse.
_LEAST_ATTENTION = 1e-3


def progressive_dropout_attention(
    features: jax.Array,
    class_weights: jax.Array,
    mu: jax.Array | float,
    *,
    relu: bool,
    divisor: int,
    normalize: bool = False,
    share: jax.Array | float | None = None,
) -> jax.Array:
    """Multiplies features with the class activation maps without their peaks (Eq. 4, 7-10).

    Each class's activation map (Eq. 7) loses the entries above mu times its own maximum (Eq. 8, 9);
    the mean of the maps over the classes (Eq. 10) multiplies the features (Eq. 4). The most
    discriminative regions thus get no attention and the classifier must look elsewhere. Gradients
    flow through the features and through the attention, not through the threshold.

    Args:
      features: (B, h, w, D), the last feature map.
      class_weights: (D, C), the weights of the linear classifier on the pooled features.
      mu: dropout coefficient in (0, 1], a scalar that may be traced.
      relu: clip the maps at zero before maximum, cut-off and mean (the released code does; the
        paper's formula does not).
      divisor: what the sum over classes is divided by: C in the paper, always 4 in the released
        code.
      normalize: divide the attention as `normalize_attention` does; not in the paper.
      share: of the attention in force, see `mix_attention`; None: all of it, as in the paper.

    Returns:
      (B, h, w, D), in the dtype of `features`.
    """
    maps = _map_classes(features, class_weights)
    if relu:
        maps = jax.nn.relu(maps)
    threshold = mu * lax.stop_gradient(maps.max(axis=(1, 2), keepdims=True))
    maps = jnp.where(maps > threshold, 0, maps)
    attention = maps.sum(axis=-1, keepdims=True) / divisor
    if normalize:
        attention = normalize_attention(attention)
    if share is not None:
        attention = mix_attention(attention, share)
    return features * attention.astype(features.dtype)


def find_peaks(features: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Finds the maximum of each class activation map (Eq. 7): without any above 0 it is dead.

    Args:
      features: (B, h, w, D), the last feature map.
      class_weights: (D, C), the weights of the linear classifier on the pooled features.

    Returns:
      (B, C) float32, without gradient.
    """
    return lax.stop_gradient(_map_classes(features, class_weights).max(axis=(1, 2)))


def _map_classes(features: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Computes the class activation maps (B, h, w, C)."""
    return jnp.einsum("bhwd,dc->bhwc", features, class_weights, precision=lax.Precision.HIGHEST)


def normalize_attention(attention: jax.Array) -> jax.Array:
    """Divides the attention of each image by its largest absolute value.

    Where no value is negative that is its maximum. Without it, logits are quadratic in the weights
    of the classifier, so that large ones grow faster and faster; with it they are linear. An image
    whose attention is 0 everywhere, because no class map is above 0, would give features and
    gradients of 0 for ever; it gets the attention 1 instead, which leaves its features as they are.
    Negative values, which only maps without ReLU have, keep their sign and stay bounded, which a
    division by a maximum near 0 would not.

    Args:
      attention: (B, h, w, 1) float32.

    Returns:
      (B, h, w, 1) float32 in [-1, 1].
    """
    largest = jnp.abs(attention).max(axis=(1, 2), keepdims=True)
    is_seen = largest > _LEAST_ATTENTION
    # Where it is not taken, the division must have a finite gradient, too.
    return jnp.where(is_seen, attention / jnp.where(is_seen, largest, 1), 1)


def mix_attention(attention: jax.Array, share: jax.Array | float) -> jax.Array:
    """Returns 1 + share * (attention - 1): from none at 0 to all of the attention at 1."""
    return 1 + share * (attention - 1)
