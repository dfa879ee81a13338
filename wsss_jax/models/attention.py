"""Progressive Dropout Attention (Han et al. 2022, section III-A2)."""

import jax
import jax.numpy as jnp
from jax import lax


def progressive_dropout_attention(
    features: jax.Array,
    class_weights: jax.Array,
    mu: jax.Array | float,
    *,
    relu: bool,
    divisor: int,
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

    Returns:
      (B, h, w, D), in the dtype of `features`.
    """
    maps = jnp.einsum("bhwd,dc->bhwc", features, class_weights, precision=lax.Precision.HIGHEST)
    if relu:
        maps = jax.nn.relu(maps)
    threshold = mu * lax.stop_gradient(maps.max(axis=(1, 2), keepdims=True))
    maps = jnp.where(maps > threshold, 0, maps)
    attention = maps.sum(axis=-1, keepdims=True) / divisor
    return features * attention.astype(features.dtype)
