"""Convolutions and their gradients as matrix products inside the image, for accelerators.

`choose_way` says which way is taken for a shape where nothing was measured.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from wsss_jax.models.cpu_convolution import Slices, list_overlaps
from wsss_jax.models.lowering import Direction, Shape, Way
from wsss_jax.models.xla_convolution import Compute


def choose_way(shape: Shape) -> Way:
    """Chooses the way to compute a convolution and both its gradients on an accelerator.

    From what XLA's compilers make of them, not from measurements: dilated convolutions are computed
    without dilation, without any further product where it divides the image.
    """
    if shape.size == 1 or shape.dilation == 1:
        return "XLA"
    divides = shape.height % shape.dilation == 0 and shape.width % shape.dilation == 0
    return "space to batch" if divides and shape.stride == 1 else "inside"


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    dilation: int,
    precision: lax.Precision | None,
) -> jax.Array:
    height, width = (-(-length // stride) for length in x.shape[1:3])
    shape = (x.shape[0], height, width, kernel.shape[3])
    places = list_overlaps(x, kernel, stride, dilation)
    return _add_products(x, kernel, places, shape, precision)


def _input_gradient(
    x: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
    *,
    stride: int,
    dilation: int,
    precision: lax.Precision | None,
) -> jax.Array:
    overlaps = list_overlaps(x, kernel, stride, dilation)
    places = ((position, outputs, inputs) for position, inputs, outputs in overlaps)
    return _add_products(gradient, kernel.swapaxes(2, 3), places, x.shape, precision)


def _add_products(
    images: jax.Array,
    kernel: jax.Array,
    places: Iterable[tuple[tuple[int, int], Slices, Slices]],
    shape: tuple[int, ...],
    precision: lax.Precision | None,
) -> jax.Array:
    """Adds up a product for each position in the kernel over the pixels that it meets.

    Args:
      images: (B, H, W, D).
      kernel: (k, k, D, F).
      places: each position, with the pixels of `images` that it meets and where their sum belongs.
      shape: of the sums, (B, H', W', F).
      precision: of the products.
    """
    total = jnp.zeros(shape, jnp.promote_types(images.dtype, jnp.float32))
    for position, taken, added in places:
        part = jnp.einsum(
            "bhwd,df->bhwf",
            images[taken],
            kernel[position],
            precision=precision,
            preferred_element_type=total.dtype,
        )
        total += _place(part, added, shape)
    return total.astype(images.dtype)


def _kernel_gradient(
    x: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
    *,
    stride: int,
    dilation: int,
    precision: lax.Precision | None,
) -> jax.Array:
    products = [
        jnp.einsum("bhwd,bhwf->df", x[inputs], gradient[outputs], precision=precision)
        for _, inputs, outputs in list_overlaps(x, kernel, stride, dilation)
    ]
    return jnp.stack(products).reshape(kernel.shape)


INSIDE: dict[Direction, Compute] = {
    "forward": _convolve,
    "input gradient": _input_gradient,
    "kernel gradient": _kernel_gradient,
}


def _place(part: jax.Array, place: Sequence[slice], shape: Sequence[int]) -> jax.Array:
    """Places an array in zeros of a shape, where the slices of height and width say.

    As padding, which XLA joins with the sum; as a sum into a slice it would be a scatter.
    """
    widths = [(0, 0, 0)]
    for length, one, whole in zip(part.shape[1:3], place[1:3], shape[1:3], strict=True):
        step = one.step or 1
        filled = step * (length - 1) + 1 if length else 0
        start = one.start if length else 0
        widths.append((start, whole - start - filled, step - 1))
    return lax.pad(part, jnp.zeros((), part.dtype), [*widths, (0, 0, 0)])
