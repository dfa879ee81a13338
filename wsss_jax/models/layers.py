"""Layers that both networks use, with the numerics of their PyTorch counterparts.

Images and feature maps are NHWC. Parameters and batch statistics are float32 whatever the compute
dtype, except in the numeric comparison, where everything is float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jax import lax

from wsss_jax.models.convolution import convolve
from wsss_jax.models.lowering import Lowering
from wsss_jax.models.normalization import normalize, normalize_batch

# The name by which `jax.checkpoint` can keep block outputs for the backward pass.
BLOCK_OUTPUT = "block_output"
EPSILON = 1e-5  # of variances, as PyTorch's default


def widen(channels: int, width: float) -> int:
    """Multiplies a number of channels by the width of a network; at least 4 remain."""
    return max(4, round(channels * width))


def accumulator(dtype: Dtype) -> Dtype:
    """Returns the dtype for sums, statistics and logits of a network that computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


class Conv(nn.Module):
    """Square convolution, padded symmetrically so that stride 1 keeps the size.

    Maps (B, H, W, D) to (B, ceil(H / stride), ceil(W / stride), features) in `dtype`. Holds
    `kernel` (k, k, D, features) and, with `use_bias` or a folded normalization (see `folding`),
    `bias` (features,). The padding is always dilation * (kernel_size - 1) / 2 on both sides, as in
    PyTorch; XLA's "SAME" would shift a strided convolution by a pixel.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    dtype: Dtype = jnp.float32
    lowering: Lowering = Lowering()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        arrays = x.astype(self.dtype), kernel.astype(self.dtype)
        x = convolve(*arrays, self.stride, self.dilation, self.lowering)
        if self.use_bias or self.has_variable("params", "bias"):
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype)
        return x


class BatchNorm(nn.Module):
    """Batch normalization over the true global batch, with PyTorch's running variance.

    Differs from `flax.linen.BatchNorm` in three ways. With `axis_name`, sums and counts are added
    over that mapped axis, so that unequal shards have the right weights. Examples with weight 0
    (the filling of a last batch) do not count. The running variance is updated with the unbiased
    variance, n / (n - 1) times the one that normalizes.

    Holds params `scale`, `bias` and batch_stats `mean`, `var`, all (D,) float32; none of them where
    it is folded into the convolution before (see `folding`), and then does nothing.
    """

    momentum: float = 0.9
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, use_running_average: bool, weight: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes x (B, ..., D); `weight` (B,) of zeros and ones says which examples count."""
        if not self.is_initializing() and not self.has_variable("params", "scale"):
            return x
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)

        sums = accumulator(x.dtype)
        if use_running_average:
            mean, var = running_mean.value, running_var.value
            x = normalize(x.astype(sums), mean, var, scale, bias, EPSILON)
            return x.astype(self.dtype)
        weight = jnp.ones(len(x), sums) if weight is None else weight.astype(sums)
        axis_name = None if self.is_initializing() else self.axis_name
        x, (mean, var, count) = normalize_batch(x, weight, scale, bias, EPSILON, axis_name)
        if not self.is_initializing():
            self._update(running_mean, mean)
            self._update(running_var, var * count / jnp.maximum(count - 1, 1))
        return x.astype(self.dtype)

    def _update(self, running: nn.Variable, value: jax.Array) -> None:
        running.value = self.momentum * running.value + (1 - self.momentum) * value


class Dropout(nn.Module):
    """Dropout with masks that depend on the example, not on the device that holds it.

    The mask of an example follows from the rng "dropout" and its position in the global batch, so
    that N devices with the same rng drop what one device drops. `channels` drops whole feature
    maps.
    """

    rate: float
    channels: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, deterministic: bool, position: jax.Array | None = None
    ) -> jax.Array:
        """Maps x (B, H, W, D) to the same shape; kept entries are scaled by 1 / (1 - rate).

        `position` (B,) int32 are the examples' places in the global batch; None: x is the whole.
        """
        if deterministic or self.rate == 0:
            return x
        batch, height, width, depth = x.shape
        if position is None:
            position = jnp.arange(batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), position)
        shape = (1, 1, depth) if self.channels else (height, width, depth)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape))(keys)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class Layers(NamedTuple):
    """The layers of a network, with what they have in common chosen once.

    Each method adds a layer of that name to the module whose `__call__` calls it.

    Attributes:
      train: dropout is on.
      batch_statistics: BatchNorm takes the statistics of the batch, not the running ones.
      weight: see `BatchNorm`.
      position: see `Dropout`.
      dtype: compute dtype.
      axis_name: see `BatchNorm`.
      lowering: of the convolutions.
    """

    train: bool
    batch_statistics: bool
    weight: jax.Array | None
    position: jax.Array | None
    dtype: Dtype
    axis_name: str | None
    lowering: Lowering

    def conv(
        self,
        x: jax.Array,
        name: str,
        features: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
    ) -> jax.Array:
        arithmetic = {"dtype": self.dtype, "lowering": self.lowering}
        return Conv(features, kernel_size, stride, dilation, **arithmetic, name=name)(x)

    def norm(self, x: jax.Array, name: str) -> jax.Array:
        norm = BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name=name)
        return norm(x, use_running_average=not self.batch_statistics, weight=self.weight)

    def dropout(self, x: jax.Array, name: str, rate: float, *, channels: bool = False) -> jax.Array:
        dropout = Dropout(rate, channels, name=name)
        return dropout(x, deterministic=not self.train, position=self.position)


def resize_align_corners(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes x (B, h, w, D) to (B, *size, D) bilinearly, corner pixels on corner pixels.

    PyTorch's `align_corners=True`, which `jax.image.resize` does not offer. Keeps the dtype.
    """
    rows = _interpolation_matrix(x.shape[1], size[0]).astype(x.dtype)
    columns = _interpolation_matrix(x.shape[2], size[1]).astype(x.dtype)
    x = jnp.einsum("yh,bhwd->bywd", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("xw,bywd->byxd", columns, x, precision=lax.Precision.HIGHEST)


def _interpolation_matrix(source: int, target: int) -> np.ndarray:
    """Returns the (target, source) matrix of linear interpolation between aligned end points."""
    position = np.linspace(0, source - 1, target)
    distance = np.abs(position[:, None] - np.arange(source)[None, :])
    return np.maximum(1 - distance, 0)


def resize_half_pixel(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes x (B, h, w, D) to (B, *size, D) bilinearly, with half-pixel centers.

    PyTorch's `align_corners=False`; no smoothing when the size shrinks.
    """
    shape = (x.shape[0], *size, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)
