"""A convolution that is matrix products on the CPU where these are faster.

There XLA computes the gradients of a convolution as further convolutions, the one for the kernel
with batch and channels exchanged. That is slow where channels are many: for ResNet38's 1x1
convolution of 2048 to 4096 channels it takes ten times as long as the same matrix product.
1x1 convolutions are products forward too, and those whose kernel lies on padding for the most
part, as the widest of DeepLab's pyramid do on small images. `benchmarks/convolutions.py` shows all
by shape. Accelerators keep XLA's own.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Slices = tuple[slice, slice, slice]

# From so many input channels on, the gradient for the input is faster as one matrix product whose
# columns are then added up; below, these columns, k * k times the input, cost more than they save
# (but for k = 1).
_CHANNELS_FOR_INPUT_PRODUCT = 512
# Fewer input channels do not fill a matrix product of their own for every position in the kernel,
# and networks that narrow are better off with XLA's own, which compiles in less than half the time.
_CHANNELS_FOR_KERNEL_PRODUCT = 64
# So many output channels repay a transposed copy of the input for the product over all pixels.
_FEATURES_FOR_COPY = 1024
# Where no more than this share of the products of a convolution is with pixels of the image, and
# the rest with padding, each position in the kernel gets a product of its own over the pixels that
# it meets; not below `_CHANNELS_FOR_INPUT_PRODUCT`, where compiling them costs more than it saves.
_SHARE_INSIDE = 0.85


def convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Convolves x (B, H, W, D) with kernel (k, k, D, F), k odd.

    The padding is dilation * (k - 1) / 2 on all sides, so the result is (B, ceil(H / stride),
    ceil(W / stride), F). All are of one dtype. A float32 convolution is computed in float32, also
    where the accelerator would rather take TF32 or bfloat16 for it, unless JAX is told otherwise
    (`jax.default_matmul_precision`).
    """
    center = kernel.shape[0] // 2
    # Farther from the center, a dilated kernel meets nothing but padding, on any device.
    reach = min(center, (max(x.shape[1:3]) - 1) // dilation)
    kept = slice(center - reach, center + reach + 1)
    return _cropped(x, kernel[kept, kept], stride, dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cropped(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """`convolve` with a kernel that is no wider than what reaches the image."""
    return _chosen(x, kernel, stride, dilation)


def _chosen(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    own = partial(_convolve, stride=stride, dilation=dilation)
    if kernel.shape[0] > 1 and not _is_wide(x.shape, kernel.shape, stride, dilation):
        return own(x, kernel)
    product = partial(_product, stride=stride, dilation=dilation)
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


def _product(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
    """The convolution as a product for each position in the kernel."""
    if kernel.shape[0] == 1:
        return jnp.einsum("bhwd,df->bhwf", x[:, ::stride, ::stride], kernel[0, 0])
    height, width = (-(-length // stride) for length in x.shape[1:3])
    sums = jnp.zeros(
        (x.shape[0], height, width, kernel.shape[-1]), jnp.promote_types(x.dtype, jnp.float32)
    )
    for position, (inputs, outputs) in _meetings(x, kernel, stride, dilation):
        part = jnp.einsum("bhwd,df->bhwf", x[inputs], kernel[position])
        sums = sums.at[outputs].add(part.astype(sums.dtype))
    return sums.astype(x.dtype)


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


_cropped.defvjp(_forward, _backward)


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
    if _is_wide(x.shape, kernel.shape, stride, dilation):
        sums = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
        for position, (inputs, outputs) in _meetings(x, kernel, stride, dilation):
            part = jnp.einsum("bhwf,df->bhwd", gradient[outputs], kernel[position])
            sums = sums.at[inputs].add(part.astype(sums.dtype))
        return sums.astype(x.dtype)
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
    products = []
    if _is_wide(x.shape, kernel.shape, stride, dilation):
        for _, (inputs, outputs) in _meetings(x, kernel, stride, dilation):
            met = x[inputs].reshape(-1, channels), gradient[outputs].reshape(-1, features)
            products.append(_over_pixels(*met))
        return jnp.stack(products).reshape(kernel.shape)
    padded = jnp.pad(x, _around(_padding(kernel, dilation)))
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


def _is_wide(x: Sequence[int], kernel: Sequence[int], stride: int, dilation: int) -> bool:
    """Whether much of a kernel lies on padding, and channels repay so many products to compile.

    `x` and `kernel` are shapes, (B, H, W, D) and (k, k, D, F).
    """
    size, channels = kernel[0], kernel[2]
    if size == 1 or channels < _CHANNELS_FOR_INPUT_PRODUCT:
        return False
    share = 1.0
    for length in x[1:3]:
        along = _along(length, size, stride, dilation)
        met = sum(outputs.stop - outputs.start for _, outputs in along)
        share *= met / (size * -(-length // stride))
    return share <= _SHARE_INSIDE


def _meetings(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> Iterator[tuple[tuple[int, int], tuple[Slices, Slices]]]:
    """The positions in the kernel, and of each the pixels of input and output that it joins."""
    rows, columns = (_along(length, kernel.shape[0], stride, dilation) for length in x.shape[1:3])
    for i, (rows_in, rows_out) in enumerate(rows):
        for j, (columns_in, columns_out) in enumerate(columns):
            everything = slice(None)
            yield (i, j), ((everything, rows_in, columns_in), (everything, rows_out, columns_out))


def _along(length: int, size: int, stride: int, dilation: int) -> list[tuple[slice, slice]]:
    """`_meetings` along an axis: slices of input and output, empty where there is only padding."""
    result = []
    for position in range(size):
        offset = (position - size // 2) * dilation
        first = max(0, -(offset // stride))
        stop = max(first, min(-(-length // stride), (length - 1 - offset) // stride + 1))
        start = first * stride + offset
        inputs = slice(start, max(start, (stop - 1) * stride + offset + 1), stride)
        result.append((inputs, slice(first, stop)))
    return result
