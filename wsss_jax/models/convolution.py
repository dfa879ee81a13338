"""The convolution of all networks: the one place that chooses how it is computed."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from wsss_jax.models import accelerator_convolution, cpu_convolution
from wsss_jax.models.lowering import BY_RULES, PLATFORMS, Direction, Lowering, Shape, Way
from wsss_jax.models.winograd import WINOGRAD
from wsss_jax.models.xla_convolution import SPACE_TO_BATCH, XLA

_OTHER = "other"  # accelerators that JAX may have besides


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    dilation: int,
    lowering: Lowering = BY_RULES,
) -> jax.Array:
    """Convolves x (B, H, W, D) with kernel (k, k, D, F), k odd.

    The padding is dilation * (k - 1) / 2 on all sides, so the result is (B, ceil(H / stride),
    ceil(W / stride), F). All arrays have one dtype.

    A float32 convolution is computed in float32, also on accelerators that prefer TF32 or bfloat16.
    With `lowering.tensorfloat32` GPUs that have TF32 compute it in that, TPUs by three products in
    bfloat16, which is no less exact, and CPUs as ever.
    """
    size = Shape.of(x.shape, kernel.shape, stride, dilation).crop().size
    cut = (kernel.shape[0] - size) // 2
    inside = slice(cut, cut + size)
    return _convolve_cropped(x, kernel[inside, inside], stride, dilation, lowering)


class Plan(NamedTuple):
    """How a convolution, or a gradient, is computed on a platform; `compute` does it.

    Attributes:
      on_cpu: whether the function is that of `cpu_convolution`.
      dilation: 1 also where an accelerator is left one pixel of a kernel.
    """

    on_cpu: bool
    way: Way
    dilation: int
    precision: lax.Precision | None


def make_plan(
    platform: str,
    direction: Direction,
    shape: Shape,
    dtype: jnp.dtype,
    lowering: Lowering,
    way: Way | None = None,
) -> Plan:
    """Plans how to compute a convolution, or a gradient; its kernel reaches the image.

    The way that is not given is chosen.
    """
    on_cpu = platform == "cpu"
    dilation = shape.dilation
    shape = shape.crop()
    if way is None:
        way = lowering.find(platform, direction, shape) or choose_way(platform, direction, shape)
    precision = None
    if dtype == jnp.float32:
        precision = lax.Precision.HIGHEST
        if lowering.tensorfloat32 and not on_cpu:
            # XLA's compiler for GPUs makes TF32 of both, but of HIGH not in all of its kernels.
            on_gpu = platform in ("cuda", "rocm")
            precision = lax.Precision.DEFAULT if on_gpu else lax.Precision.HIGH
    return Plan(
        on_cpu and way in cpu_convolution.PRODUCTS[direction],
        way,
        dilation if on_cpu else shape.dilation,
        precision,
    )


def choose_way(platform: str, direction: Direction, shape: Shape) -> Way:
    """Chooses the way for a shape of which nothing was measured."""
    if platform != "cpu":
        return accelerator_convolution.choose_way(shape)
    image = (1, shape.height, shape.width, shape.channels)
    kernel = (shape.size, shape.size, shape.channels, shape.features)
    return cpu_convolution.choose_way(direction, image, kernel, shape.stride, shape.dilation)


def compute(plan: Plan, direction: Direction, stride: int, *arrays: jax.Array) -> jax.Array:
    """Computes a convolution of (x, kernel), or a gradient of (x, kernel, output's gradient)."""
    options = {"stride": stride, "dilation": plan.dilation}
    if plan.on_cpu:
        result = cpu_convolution.PRODUCTS[direction][plan.way](*arrays, **options)
        # Without a barrier, XLA of jaxlib 0.12 makes one program of the products of several layers
        # in bfloat16 and of the pooling after them: it gives what happened to be in memory.
        return lax.optimization_barrier(result) if result.dtype == jnp.bfloat16 else result
    functions = {
        "XLA": XLA,
        "space to batch": SPACE_TO_BATCH,
        "inside": accelerator_convolution.INSIDE,
        **WINOGRAD,
    }[plan.way]
    return functions[direction](*arrays, **options, precision=plan.precision)


def _compute(
    direction: Direction, stride: int, dilation: int, lowering: Lowering, *arrays: jax.Array
) -> jax.Array:
    """Computes a convolution or a gradient as planned for the platform that the program is for."""
    x, kernel, *_ = arrays
    shape = Shape.of(x.shape, kernel.shape, stride, dilation)
    plans = {
        platform: make_plan(platform, direction, shape, x.dtype, lowering)
        for platform in (*PLATFORMS, _OTHER)
    }
    functions = {plan: partial(compute, plan, direction, stride) for plan in plans.values()}
    other = plans.pop(_OTHER)
    special = {name: functions[plan] for name, plan in plans.items() if plan != other}
    if not special:
        return functions[other](*arrays)
    return lax.platform_dependent(*arrays, **special, default=functions[other])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve_cropped(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, lowering: Lowering
) -> jax.Array:
    """`convolve` with a kernel that is no wider than what reaches the image."""
    return _compute("forward", stride, dilation, lowering, x, kernel)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, lowering: Lowering
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _compute("forward", stride, dilation, lowering, x, kernel), (x, kernel)


def _backward(
    stride: int,
    dilation: int,
    lowering: Lowering,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    # Computed one by one, so that an unused one, such as for frozen weights, leaves the program.
    return (
        _compute("input gradient", stride, dilation, lowering, *residuals, gradient),
        _compute("kernel gradient", stride, dilation, lowering, *residuals, gradient),
    )


_convolve_cropped.defvjp(_forward, _backward)
