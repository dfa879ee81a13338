"""A convolution that is matrix products on the CPU where these are faster.

There XLA computes the gradients of a convolution as further convolutions, the one for the kernel
with batch and channels exchanged. That is slow where channels are many: for ResNet38's 1x1
convolution of 2048 to 4096 channels it takes ten times as long as the same matrix product.
1x1 convolutions are products forward too. `benchmarks/convolutions.py` shows all by shape.
Accelerators keep XLA's own.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# From so many input channels on, the gradient for the input is faster as one matrix product whose
# columns are then added up; below, these columns, k * k times the input, cost more than they save
# (but for k = 1).
_CHANNELS_FOR_INPUT_PRODUCT = 512
# Fewer input channels do not fill a matrix product of their own for every position in the kernel,
# and networks that narrow are better off with XLA's own, which compiles in less than half the time.
_CHANNELS_FOR_KERNEL_PRODUCT = 64
# So many output channels repay a transposed copy of the input for the product over all pixels.
_FEATURES_FOR_COPY = 1024


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Convolves x (B, H, W, D) with kernel (k, k, D, F), k odd.

    The padding is dilation * (k - 1) / 2 on all sides, so the result is (B, ceil(H / stride),
    ceil(W / stride), F). All are of one dtype. A float32 convolution is computed in float32, also
    where the accelerator would rather take TF32 or bfloat16 for it, unless JAX is told otherwise
    (`jax.default_matmul_precision`).
    """
    return _chosen(x, kernel, stride, dilation)


def _chosen(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    own = partial(_convolve, stride=stride, dilation=dilation)
    if kernel.shape[0] > 1:
        return own(x, kernel)

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum("bhwd,df->bhwf", x[:, ::stride, ::stride], kernel[0, 0])

    return lax.platform_dependent(x, kernel, cpu=product, default=own)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    padding = _padding(kernel, dilation)
    exact = x.dtype == jnp.float32 and jax.config.jax_default_matmul_precision is None
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST if exact else None,
    )


def _padding(kernel: jax.Array, dilation: int) -> int:
    return dilation * (kernel.shape[0] - 1) // 2


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _chosen(x, kernel, stride, dilation), (x, kernel)


def _backward(
    stride: int, dilation: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def choose(product: Callable, own: Callable) -> jax.Array:
        return lax.platform_dependent(
            *residuals,
            gradient,
            cpu=partial(product, stride=stride, dilation=dilation),
            default=partial(own, stride=stride, dilation=dilation),
        )

    # Two choices and not one, so that what nobody asks for, such as the gradient for frozen
    # weights, is removed from the program.
    return choose(_input_product, _input_gradient), choose(_kernel_product, _kernel_gradient)


convolve.defvjp(_forward, _backward)


def _input_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    """The gradient for x as XLA computes it."""
    return jax.linear_transpose(lambda x: _convolve(x, kernel, stride, dilation), x)(gradient)[0]


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    """The gradient for the kernel as XLA computes it."""
    transpose = jax.linear_transpose(lambda k: _convolve(x, k, stride, dilation), kernel)
    return transpose(gradient)[0]


def _input_product(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    """The gradient for x: what every output pixel gives to its k * k input pixels, added up."""
    size, channels, features = kernel.shape[0], *kernel.shape[2:]
    if size > 1 and channels < _CHANNELS_FOR_INPUT_PRODUCT:
        return _input_gradient(x, kernel, gradient, stride=stride, dilation=dilation)
    columns = jnp.einsum("bhwf,kf->bhwk", gradient, kernel.reshape(-1, features))
    padding = _padding(kernel, dilation)
    padded = jnp.pad(jnp.zeros_like(x), _around(padding))
    for position in range(size * size):
        window = _window(position, size, gradient.shape, stride, dilation)
        part = columns[..., position * channels : (position + 1) * channels]
        padded = padded.at[window].add(part)
    return padded[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]


def _kernel_product(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    """The gradient for the kernel: at each of its positions the input there times the gradient."""
    size, channels, features = kernel.shape[0], *kernel.shape[2:]
    if channels < _CHANNELS_FOR_KERNEL_PRODUCT:
        return _kernel_gradient(x, kernel, gradient, stride=stride, dilation=dilation)
    padded = jnp.pad(x, _around(_padding(kernel, dilation)))
    products = []
    for position in range(size * size):
        window = padded[_window(position, size, gradient.shape, stride, dilation)]
        products.append(_over_pixels(window.reshape(-1, channels), gradient.reshape(-1, features)))
    return jnp.stack(products).reshape(kernel.shape)


def _over_pixels(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """x (N, D) and gradient (N, F) to the sum over N, (D, F)."""
    if gradient.shape[1] >= _FEATURES_FOR_COPY:
        return lax.optimization_barrier(x.T) @ gradient  # without the barrier it is no copy
    return x.T @ gradient


def _around(padding: int) -> tuple[tuple[int, int], ...]:
    return ((0, 0), (padding, padding), (padding, padding), (0, 0))


def _window(
    position: int, size: int, output: tuple[int, ...], stride: int, dilation: int
) -> tuple[slice, ...]:
    """The pixels of the padded input that one position in the kernel meets."""
    row, column = (dilation * at for at in divmod(position, size))
    height, width = (stride * (length - 1) + 1 for length in output[1:3])
    return (
        slice(None),
        slice(row, row + height, stride),
        slice(column, column + width, stride),
    )
