"""The convolution of both networks: XLA's own on accelerators, matrix products on CPUs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from wsss_jax.models import cpu_convolution
from wsss_jax.models.cpu_convolution import Direction


def convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Convolves x (B, H, W, D) with kernel (k, k, D, F), k odd.

    The padding is dilation * (k - 1) / 2 on all sides, so the result is (B, ceil(H / stride),
    ceil(W / stride), F). All arrays have one dtype. A float32 convolution is computed in float32,
    also on accelerators that prefer TF32 or bfloat16, unless JAX is told otherwise
    (`jax.default_matmul_precision`).
    """
    center = kernel.shape[0] // 2
    # Farther from the center, a dilated kernel meets only padding, on any device.
    reach = min(center, (max(x.shape[1:3]) - 1) // dilation)
    inside = slice(center - reach, center + reach + 1)
    return _convolve_cropped(x, kernel[inside, inside], stride, dilation)


def convolve_by_xla(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
    """Computes `convolve` as XLA does."""
    padding = dilation * (kernel.shape[0] - 1) // 2
    # JAX makes the attributes of its configuration at run time.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    is_exact = x.dtype == jnp.float32 and precision is None
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST if is_exact else None,
    )


def _input_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    function = partial(convolve_by_xla, kernel=kernel, stride=stride, dilation=dilation)
    return jax.linear_transpose(function, x)(gradient)[0]


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
    function = partial(convolve_by_xla, x, stride=stride, dilation=dilation)
    return jax.linear_transpose(function, kernel)(gradient)[0]


# What XLA makes of a convolution and of its gradients; arguments as of `cpu_convolution.PRODUCTS`.
XLA: dict[Direction, Callable[..., jax.Array]] = {
    "forward": convolve_by_xla,
    "input gradient": _input_gradient,
    "kernel gradient": _kernel_gradient,
}


def _compute(direction: Direction, stride: int, dilation: int, *arrays: jax.Array) -> jax.Array:
    """Computes a convolution or a gradient in the fastest way for the platform."""
    by_xla = partial(XLA[direction], stride=stride, dilation=dilation)
    x, kernel, *_ = arrays
    way = cpu_convolution.choose_way(direction, x.shape, kernel.shape, stride, dilation)
    if way == "XLA":
        return by_xla(*arrays)
    product = partial(cpu_convolution.PRODUCTS[direction][way], stride=stride, dilation=dilation)

    def multiply(*arrays: jax.Array) -> jax.Array:
        result = product(*arrays)
        # Without a barrier, XLA of jaxlib 0.12 makes one program of the products of several layers
        # in bfloat16 and of the pooling after them: it gives what happened to be in memory.
        return lax.optimization_barrier(result) if result.dtype == jnp.bfloat16 else result

    return lax.platform_dependent(*arrays, cpu=multiply, default=by_xla)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_cropped(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """`convolve` with a kernel that is no wider than what reaches the image."""
    return _compute("forward", stride, dilation, x, kernel)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _compute("forward", stride, dilation, x, kernel), (x, kernel)


def _backward(
    stride: int, dilation: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Computed one by one, so that an unused one, such as for frozen weights, leaves the program.
    return (
        _compute("input gradient", stride, dilation, *residuals, gradient),
        _compute("kernel gradient", stride, dilation, *residuals, gradient),
    )


_convolve_cropped.defvjp(_forward, _backward)
