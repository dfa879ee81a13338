"""Convolutions and their gradients as matrix products, for CPUs.

On a CPU, XLA computes the gradients of a convolution as further convolutions; the one for the
kernel exchanges batch and channels. That is slow with many channels: for ResNet38's 1x1
convolution of 2048 to 4096 channels it takes ten times as long as the same matrix product.
`choose_way` says which way is the fastest for a shape; `benchmarks/convolutions.py` measures it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from wsss_jax.models.lowering import Direction, Way

Slices = tuple[slice, slice, slice]

# From this many input channels on, the input gradient is faster as one matrix product whose columns
# are then added up. With fewer, the columns, k * k times the input, cost more than they save.
_CHANNELS_FOR_INPUT_PRODUCT = 512
# With this many channels, an image of so few pixels pays with a product for each position: XLA's
# input gradient is a convolution, for which it copies the kernel turned around.
_CHANNELS_OF_SMALL_IMAGE = 256
_PIXELS_OF_SMALL_IMAGE = 256
# Fewer input channels do not fill a matrix product for every position in the kernel, and networks
# that narrow compile in less than half the time with XLA's own gradient.
_CHANNELS_FOR_KERNEL_PRODUCT = 64
# With this many output channels, a transposed copy of the input pays in the product over pixels.
_FEATURES_FOR_COPY = 1024
# If at most this share of a convolution's products is with pixels of the image, and the rest with
# padding, each position in the kernel gets a product over the pixels that it meets.
_SHARE_INSIDE = 0.85
# Fewer channels on either side do not pay for the sums around Winograd's products, fewer tiles of
# an image not for those of the kernel.
_CHANNELS_FOR_WINOGRAD = 64
_TILES_FOR_WINOGRAD = 32


def choose_way(
    direction: Direction,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    stride: int,
    dilation: int,
) -> Way:
    """Chooses the fastest way to compute a convolution or a gradient on a CPU.

    For an input of shape (B, H, W, D) and a kernel of shape (k, k, D, F).

    Returns:
      "XLA", a way of `winograd`, or the key of a function in `PRODUCTS[direction]`.
    """
    size, _, channels, features = kernel_shape
    if size == 3 and stride == 1 and min(channels, features) >= _CHANNELS_FOR_WINOGRAD:
        winograd = _choose_winograd(x_shape, dilation)
        if winograd:
            return winograd
    if _is_mostly_padding(x_shape, kernel_shape, stride, dilation):
        return "inside"
    if direction == "forward":
        return "product" if size == 1 else "XLA"
    if direction == "input gradient":
        if size > 1 and _is_small(x_shape, channels):
            return "inside"
        return "product" if size == 1 or channels >= _CHANNELS_FOR_INPUT_PRODUCT else "XLA"
    if channels < _CHANNELS_FOR_KERNEL_PRODUCT:
        return "XLA"
    return "copied" if features >= _FEATURES_FOR_COPY else "product"


def _choose_winograd(x_shape: Sequence[int], dilation: int) -> Way | None:
    """Chooses the tiles that fit the image, or the parts that a dilation makes of it."""
    if any(length % dilation for length in x_shape[1:3]):
        return None
    sides = [length // dilation for length in x_shape[1:3]]
    even, divisible = (all(side % tile == 0 for side in sides) for tile in (2, 4))
    tile = 2 if even and not divisible else 4
    tiles = dilation**2 * math.prod(-(-side // tile) for side in sides)
    if tiles < _TILES_FOR_WINOGRAD:
        return None
    return "Winograd 2x2" if tile == 2 else "Winograd 4x4"


def _is_small(x_shape: Sequence[int], channels: int) -> bool:
    _, height, width, _ = x_shape
    return channels >= _CHANNELS_OF_SMALL_IMAGE and height * width <= _PIXELS_OF_SMALL_IMAGE


def _is_mostly_padding(
    x_shape: Sequence[int], kernel_shape: Sequence[int], stride: int, dilation: int
) -> bool:
    """Whether much of a kernel lies on padding, with enough channels to pay for compiling."""
    size, channels = kernel_shape[0], kernel_shape[2]
    if size == 1 or channels < _CHANNELS_FOR_INPUT_PRODUCT:
        return False
    share = 1.0
    for length in x_shape[1:3]:
        overlaps = _overlaps_on_axis(length, size, stride, dilation)
        pixels = sum(outputs.stop - outputs.start for _, outputs in overlaps)
        share *= pixels / (size * -(-length // stride))
    return share <= _SHARE_INSIDE


def _convolve_1x1(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
    del dilation  # means nothing for a kernel of one pixel
    return jnp.einsum("bhwd,df->bhwf", x[:, ::stride, ::stride], kernel[0, 0])


def _convolve_inside(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
    """Adds up a product for each position in the kernel over the pixels that it meets."""
    height, width = (-(-length // stride) for length in x.shape[1:3])
    shape = (x.shape[0], height, width, kernel.shape[-1])
    sums = jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))
    for position, inputs, outputs in list_overlaps(x, kernel, stride, dilation):
        part = jnp.einsum("bhwd,df->bhwf", x[inputs], kernel[position])
        sums = sums.at[outputs].add(part.astype(sums.dtype))
    return sums.astype(x.dtype)


def _input_gradient_by_columns(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    """Adds up what every output pixel gives to its k * k input pixels, from one product."""
    size, channels, features = kernel.shape[0], *kernel.shape[2:]
    columns = jnp.einsum("bhwf,kf->bhwk", gradient, kernel.reshape(-1, features))
    padding = dilation * (size - 1) // 2
    padded = jnp.pad(jnp.zeros_like(x), _pad_widths(padding))
    for position in range(size * size):
        window = _window(position, size, gradient.shape, stride, dilation)
        part = columns[..., position * channels : (position + 1) * channels]
        padded = padded.at[window].add(part)
    return padded[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]


def _input_gradient_inside(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    sums = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    for position, inputs, outputs in list_overlaps(x, kernel, stride, dilation):
        part = jnp.einsum("bhwf,df->bhwd", gradient[outputs], kernel[position])
        sums = sums.at[inputs].add(part.astype(sums.dtype))
    return sums.astype(x.dtype)


def _kernel_gradient_by_window(
    x: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
    *,
    stride: int,
    dilation: int,
    copy: bool = False,
) -> jax.Array:
    """Multiplies, for each position in the kernel, the input there with the gradient."""
    size, channels, features = kernel.shape[0], *kernel.shape[2:]
    padded = jnp.pad(x, _pad_widths(dilation * (size - 1) // 2))
    products = []
    for position in range(size * size):
        window = padded[_window(position, size, gradient.shape, stride, dilation)]
        pixels = window.reshape(-1, channels), gradient.reshape(-1, features)
        products.append(_multiply_over_pixels(*pixels, copy=copy))
    return jnp.stack(products).reshape(kernel.shape)


def _kernel_gradient_inside(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    channels, features = kernel.shape[2:]
    products = []
    for _, inputs, outputs in list_overlaps(x, kernel, stride, dilation):
        pixels = x[inputs].reshape(-1, channels), gradient[outputs].reshape(-1, features)
        products.append(_multiply_over_pixels(*pixels, copy=features >= _FEATURES_FOR_COPY))
    return jnp.stack(products).reshape(kernel.shape)


# The ways other than XLA's. All take (x, kernel), the gradients also the gradient of the output,
# and `stride` and `dilation` by name.
PRODUCTS: dict[Direction, dict[Way, Callable[..., jax.Array]]] = {
    "forward": {"product": _convolve_1x1, "inside": _convolve_inside},
    "input gradient": {"product": _input_gradient_by_columns, "inside": _input_gradient_inside},
    "kernel gradient": {
        "product": _kernel_gradient_by_window,
        "copied": partial(_kernel_gradient_by_window, copy=True),
        "inside": _kernel_gradient_inside,
    },
}


def _multiply_over_pixels(x: jax.Array, gradient: jax.Array, *, copy: bool) -> jax.Array:
    """x (N, D) and gradient (N, F) to the sum over N, (D, F)."""
    if copy:
        return lax.optimization_barrier(x.T) @ gradient  # without the barrier it is no copy
    return x.T @ gradient


def _pad_widths(padding: int) -> tuple[tuple[int, int], ...]:
    return ((0, 0), (padding, padding), (padding, padding), (0, 0))


def _window(
    position: int, size: int, output: tuple[int, ...], stride: int, dilation: int
) -> Slices:
    """The pixels of the padded input that one position in the kernel meets."""
    row, column = (dilation * index for index in divmod(position, size))
    height, width = (stride * (length - 1) + 1 for length in output[1:3])
    return slice(None), slice(row, row + height, stride), slice(column, column + width, stride)


def list_overlaps(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> Iterator[tuple[tuple[int, int], Slices, Slices]]:
    """The positions in the kernel, each with the input and output pixels that it joins."""
    size, everything = kernel.shape[0], slice(None)
    rows, columns = (_overlaps_on_axis(n, size, stride, dilation) for n in x.shape[1:3])
    for i, (rows_in, rows_out) in enumerate(rows):
        for j, (columns_in, columns_out) in enumerate(columns):
            yield (i, j), (everything, rows_in, columns_in), (everything, rows_out, columns_out)


def _overlaps_on_axis(
    length: int, size: int, stride: int, dilation: int
) -> list[tuple[slice, slice]]:
    """Slices of input and output for each position; empty where there is only padding."""
    result = []
    for position in range(size):
        offset = (position - size // 2) * dilation
        first = max(0, -(offset // stride))
        stop = max(first, min(-(-length // stride), (length - 1 - offset) // stride + 1))
        start = first * stride + offset
        inputs = slice(start, max(start, (stop - 1) * stride + offset + 1), stride)
        result.append((inputs, slice(first, stop)))
    return result
