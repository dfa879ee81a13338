"""Normalization by the statistics of a batch, with its gradient by hand.

Differentiated by JAX, it takes XLA on a CPU two to four times as long (`benchmarks/README.md`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from wsss_jax.models.materialize import materialize


class Moments(NamedTuple):
    """Statistics of the examples that count, over all replicas.

    Attributes:
      mean, var: (D,), the variance is the one around the mean, divided by the count.
      positions: scalar, how many were averaged; at least 1.
    """

    mean: jax.Array
    var: jax.Array
    positions: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalize_batch(
    x: jax.Array,
    weight: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, Moments]:
    """Normalizes each channel by its mean and variance in the batch.

    Args:
      x: (B, ..., D).
      weight: (B,), zeros and ones: which examples count. Its dtype is that of all sums.
      scale, bias: (D,).
      epsilon: added to the variance.
      axis_name: mapped axis whose shards are one batch; None: x is the whole.

    Returns:
      x normalized, in its dtype, and the statistics, which have no gradient.
    """
    return _normalize(x, weight, scale, bias, epsilon, axis_name)[0]


def normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """Normalizes x (B, ..., D) by given statistics, all (D,)."""
    # One factor and one offset per channel, as PyTorch computes it: subtracting the mean first
    # rounds differently and flips ReLUs near zero, which causes errors of 1e-4 in Grad-CAM.
    factor = scale * lax.rsqrt(var + epsilon)
    return x * factor + (bias - mean * factor)


def _normalize(
    x: jax.Array,
    weight: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None,
) -> tuple[tuple[jax.Array, Moments], tuple[jax.Array, ...]]:
    rows, of_rows = _flatten(x, weight.dtype), _repeat(weight, x)
    count = jnp.maximum(_add_replicas(of_rows.sum(), axis_name), 1)
    mean = _add_replicas((rows * of_rows).sum(0), axis_name) / count
    var = _add_replicas((jnp.square(rows - mean) * of_rows).sum(0), axis_name) / count
    y = normalize(rows, mean, var, scale, bias, epsilon).reshape(x.shape).astype(x.dtype)
    return (y, Moments(mean, var, count)), (x, weight, scale, mean, var, count)


def _differentiate(
    epsilon: float,
    axis_name: str | None,
    residuals: tuple[jax.Array, ...],
    gradients: tuple[jax.Array, Moments],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x, weight, scale, mean, var, count = residuals
    gradient = materialize(_flatten(gradients[0], weight.dtype))
    rows = _flatten(x, weight.dtype)
    bias_gradient = gradient.sum(0)
    to_factor = (gradient * (rows - mean)).sum(0)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    # Every position moves the mean and the variance, and they move those of all replicas.
    by_mean = factor * _add_replicas(bias_gradient, axis_name) / count
    by_var = factor * jnp.square(inverse) * _add_replicas(to_factor, axis_name) / count
    x_gradient = gradient * factor - _repeat(weight, x) * ((rows - mean) * by_var + by_mean)
    return (
        x_gradient.reshape(x.shape).astype(x.dtype),
        jnp.zeros_like(weight),
        to_factor * inverse,
        bias_gradient,
    )


normalize_batch.defvjp(_normalize, _differentiate)


def _flatten(x: jax.Array, dtype: Dtype) -> jax.Array:
    """(B, ..., D) to (N, D): XLA sums over one axis much faster than over three."""
    return x.reshape(-1, x.shape[-1]).astype(dtype)


def _repeat(weight: jax.Array, x: jax.Array) -> jax.Array:
    """(B,) to (N, 1), the weights of the rows of `_flatten`."""
    return jnp.repeat(weight, x[0, ..., 0].size)[:, None]


def _add_replicas(total: jax.Array, axis_name: str | None) -> jax.Array:
    return total if axis_name is None else lax.psum(total, axis_name)
