"""Convolutions and their gradients as XLA computes them, dilated ones also without dilation.

XLA makes of the kernel's gradient of a dilated convolution a convolution whose window moves by the
dilation, with the batch as channels and a kernel as large as the image. Its compiler for GPUs does
not recognize it as a gradient (`MatchBackwardFilter` wants steps of 1), so it runs slowly. Space to
batch avoids it: of an image, every n-th row and column, n being the dilation, are an image of their
own, on which the kernel is not dilated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wsss_jax.models.lowering import Direction

# (x, kernel), of gradients also the gradient of the output, and `stride`, `dilation`, `precision`
# by name.
Compute = Callable[..., jax.Array]


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    dilation: int,
    precision: lax.Precision | None,
) -> jax.Array:
    padding = dilation * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _input_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, **options: Any
) -> jax.Array:
    function = partial(_convolve, kernel=kernel, **options)
    return jax.linear_transpose(function, x)(gradient)[0]


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, **options: Any
) -> jax.Array:
    function = partial(_convolve, x, **options)
    return jax.linear_transpose(function, kernel)(gradient)[0]


XLA: dict[Direction, Compute] = {
    "forward": _convolve,
    "input gradient": _input_gradient,
    "kernel gradient": _kernel_gradient,
}


def by_space_to_batch(functions: dict[Direction, Compute]) -> dict[Direction, Compute]:
    """Makes of functions for convolutions of stride 1 without dilation those with dilation."""
    return {
        direction: partial(_compute_on_phases, direction, function)
        for direction, function in functions.items()
    }


def _compute_on_phases(
    direction: Direction,
    function: Compute,
    x: jax.Array,
    kernel: jax.Array,
    *gradient: jax.Array,
    stride: int,
    dilation: int,
    precision: lax.Precision | None,
) -> jax.Array:
    """Computes a convolution of stride 1 on its phases.

    Sizes that the dilation does not divide are filled up with zeros, which add nothing.
    """
    assert stride == 1  # see `lowering.list_ways`
    function = partial(function, stride=1, dilation=1, precision=precision)
    if dilation == 1:
        return function(x, kernel, *gradient)
    phases = (_split(images, dilation) for images in (x, *gradient))
    result = function(next(phases), kernel, *phases)
    return result if direction == "kernel gradient" else _merge(result, x.shape, dilation)


SPACE_TO_BATCH = by_space_to_batch(XLA)


def _split(images: jax.Array, n: int) -> jax.Array:
    """Splits images (B, H, W, D) into the images of every n-th row and column.

    Returns:
      (B * n * n, ceil(H / n), ceil(W / n), D)
    """
    batch, height, width, depth = images.shape
    images = jnp.pad(images, ((0, 0), (0, -height % n), (0, -width % n), (0, 0)))
    rows, columns = (images.shape[axis] // n for axis in (1, 2))
    phases = images.reshape(batch, rows, n, columns, n, depth).transpose(0, 2, 4, 1, 3, 5)
    return phases.reshape(batch * n * n, rows, columns, depth)


def _merge(phases: jax.Array, shape: tuple[int, ...], n: int) -> jax.Array:
    """Inverts `_split` for images of a batch, height and width as in `shape`."""
    _, rows, columns, depth = phases.shape
    batch, height, width, _ = shape
    images = phases.reshape(batch, n, n, rows, columns, depth).transpose(0, 3, 1, 4, 2, 5)
    return images.reshape(batch, rows * n, columns * n, depth)[:, :height, :width]
