"""All ways to compute a convolution against XLA's own, and its gradients."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wsss_jax.models import convolution, cpu_convolution
from wsss_jax.models.lowering import BY_RULES, DIRECTIONS, Choice, Lowering, Shape, list_ways
from wsss_jax.models.winograd import WINOGRAD

CHANNELS = (3, 5), (64, 6), (513, 4), (520, 1030)
KERNELS = (3, 1, 1), (3, 2, 1), (3, 1, 4), (1, 2, 1)
# At 18 all but the middle row of the kernel meets only padding.
WIDE = [((513, 4), (3, 2, 4)), ((513, 4), (5, 1, 6)), ((513, 4), (3, 1, 18)), ((64, 6), (5, 1, 6))]


# The dilation divides both sides, one, none; is larger than a side; with strides.
WAYS = [
    Shape(28, 28, 5, 6, 3, 1, 4),
    Shape(14, 9, 5, 6, 3, 1, 2),
    Shape(14, 9, 5, 6, 3, 1, 12),
    Shape(9, 14, 5, 6, 5, 1, 3),
    Shape(14, 9, 5, 6, 3, 2, 2),
    Shape(14, 9, 5, 6, 1, 2, 1),
]

QUICKLY = {"xla_backend_optimization_level": 0}  # compiled in half the time


def convolve_by_xla(x, kernel, stride, dilation):
    padding = dilation * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def list_products(text):
    """Lists the convolutions and matrix products of a program, with all their attributes."""
    names = "stablehlo.convolution(", "stablehlo.dot_general"
    lines = [line for line in text.splitlines() if any(name in line for name in names)]
    assert lines
    return [re.sub(r"%\w+", "%", line).strip() for line in lines]


def draw(shape, dtype, batch=2):
    """Draws an input, a kernel and a gradient of the output."""
    rng = np.random.default_rng(shape.channels + shape.stride)
    out = (-(-length // shape.stride) for length in (shape.height, shape.width))
    sizes = (
        (batch, shape.height, shape.width, shape.channels),
        (shape.size, shape.size, shape.channels, shape.features),
        (batch, *out, shape.features),
    )
    return [jnp.asarray(rng.normal(size=size), dtype) for size in sizes]


@pytest.mark.parametrize("depths,shape", [*itertools.product(CHANNELS, KERNELS), *WIDE])
def test_gradients_are_those_of_xla(depths, shape):
    (channels, features), (size, stride, dilation) = depths, shape
    with jax.enable_x64(True):
        x, kernel, gradient = draw(
            Shape(14, 20, channels, features, size, stride, dilation), np.float64
        )
        expected, pullback = jax.vjp(lambda *a: convolve_by_xla(*a, stride, dilation), x, kernel)
        found, our_pullback = jax.vjp(
            lambda *a: convolution.convolve(*a, stride, dilation), x, kernel
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(our_pullback(gradient), pullback(gradient)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "shape,dtype,tolerance",
    [*((shape, "float64", 1e-13) for shape in WAYS), (WAYS[1], "float32", 1e-5)],
    ids=str,
)
def test_every_way_computes_the_same(shape, dtype, tolerance):
    """On every platform and in all directions; the ways of accelerators run here, too."""

    def compute_all(x, kernel, gradient):
        right, pullback = jax.vjp(
            lambda *a: convolve_by_xla(*a, shape.stride, shape.dilation), x, kernel
        )
        expected = dict(zip(DIRECTIONS, (right, *pullback(gradient)), strict=True))
        found = {}
        for platform, direction in itertools.product(("cpu", "cuda"), DIRECTIONS):
            arrays = (x, kernel) if direction == "forward" else (x, kernel, gradient)
            for way in list_ways(platform, direction, shape):
                plan = convolution.make_plan(platform, direction, shape, x.dtype, BY_RULES, way)
                result = convolution.compute(plan, direction, shape.stride, *arrays)
                found[direction, platform, way] = result
        return expected, found

    with jax.enable_x64(dtype == "float64"):
        compute_all = jax.jit(compute_all, compiler_options=QUICKLY)
        expected, found = compute_all(*draw(shape, dtype))
    assert len(found) >= 11
    for (direction, *names), result in found.items():
        assert result.dtype == dtype
        atol = tolerance * np.abs(expected[direction]).max()
        np.testing.assert_allclose(
            result, expected[direction], rtol=0, atol=atol, err_msg=str(names)
        )


@pytest.mark.parametrize(
    "platform,way",
    [("cuda", "inside"), ("cuda", "space to batch"), *(("cpu", way) for way in WINOGRAD)],
)
def test_sums_of_bfloat16_are_rounded_once(platform, way):
    """Of its parts each sum is taken in float32, as in XLA's convolution."""
    shape = Shape(28, 28, 64, 32, 3, 1, 2)

    def compute_all(*arrays):
        results = []
        for direction in DIRECTIONS:
            needed = arrays[:2] if direction == "forward" else arrays
            plan = convolution.make_plan(platform, direction, shape, arrays[0].dtype, BY_RULES, way)
            results.append(convolution.compute(plan, direction, 1, *needed))
        return results

    compute_all = jax.jit(compute_all, compiler_options=QUICKLY)
    arrays = draw(shape, "bfloat16")
    exact = compute_all(*(x.astype("float32") for x in arrays))
    for found, right in zip(compute_all(*arrays), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        half_a_step = 2.0**-8 * np.abs(right) + 1e-5 * np.abs(right).max()
        assert (np.abs(found.astype("float32") - right) <= half_a_step).all()


@pytest.mark.parametrize("way,share", [("Winograd 2x2", 1.5e-6), ("Winograd 4x4", 6e-6)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_fewer_products_lose_little(way, share, dilation):
    """The largest error in float32, as a share of the largest number; about twice what was found.

    Interpolated at the usual points (0, 1, -1, 2, -2) tiles of 4 x 4 lose 1.5e-5. What XLA's own
    convolution loses depends on the processor: 5e-7 to 1.3e-6.
    """
    shape = Shape(16, 16, 256, 128, 3, 1, dilation)

    def compute_all(way, arrays):
        results = []
        for direction in DIRECTIONS:
            needed = arrays[:2] if direction == "forward" else arrays
            plan = convolution.make_plan("cpu", direction, shape, arrays[0].dtype, BY_RULES, way)
            results.append(convolution.compute(plan, direction, 1, *needed))
        return results

    compute_all = jax.jit(compute_all, static_argnums=0)
    arrays = [np.asarray(array) for array in draw(shape, np.float32)]
    with jax.enable_x64(True):
        exact = compute_all("XLA", [array.astype(np.float64) for array in arrays])
    for found, right in zip(compute_all(way, arrays), map(np.asarray, exact), strict=True):
        error = np.abs(np.asarray(found, np.float64) - right).max()
        assert 0 < error < share * np.abs(right).max()


@pytest.mark.parametrize(
    "shape,way",
    [
        (Shape(28, 28, 512, 512, 3, 1, 1), "Winograd 4x4"),
        (Shape(28, 28, 512, 1024, 3, 1, 2), "Winograd 2x2"),  # four images of 14 x 14
        (Shape(28, 28, 1024, 2048, 3, 1, 4), "Winograd 4x4"),  # sixteen of 7 x 7
        (Shape(14, 14, 256, 256, 3, 1, 1), "Winograd 2x2"),
        (Shape(14, 14, 512, 512, 3, 1, 2), "inside"),  # sixteen tiles: too few
        (Shape(14, 14, 2048, 256, 3, 1, 6), "inside"),  # 6 does not divide 14
        (Shape(56, 56, 63, 64, 3, 1, 1), "XLA"),
        (Shape(56, 56, 64, 63, 3, 1, 1), "XLA"),
        (Shape(56, 56, 128, 128, 3, 2, 1), "XLA"),
        (Shape(56, 56, 128, 128, 5, 1, 1), "XLA"),
    ],
    ids=str,
)
def test_tiles_are_chosen_that_fit(shape, way):
    assert convolution.choose_way("cpu", "forward", shape) == way
    if way in WINOGRAD:
        assert {convolution.choose_way("cpu", each, shape) for each in DIRECTIONS} == {way}


def test_the_ways_of_cpus_are_those_that_can_be_computed():
    """With a kernel of one pixel and of several."""
    for direction in DIRECTIONS:
        named = {
            way
            for size in (1, 3)
            for way in list_ways("cpu", direction, Shape(8, 8, 4, 4, size, 1, 2))
        }
        products = cpu_convolution.PRODUCTS[direction]
        assert named == {"XLA", "space to batch", *products, *WINOGRAD}


def test_dilation_is_left_to_no_accelerator():
    """No program for them has a dilated convolution, nor a gradient whose window takes steps."""
    for size, dilation in ((28, 2), (28, 4), (14, 4), (14, 8), (14, 6), (14, 12), (14, 18)):
        x, kernel = jnp.ones((2, size, size, 8)), jnp.ones((3, 3, 8, 4))

        def loss(x, kernel, dilation=dilation):
            return jnp.square(convolution.convolve(x, kernel, 1, dilation)).sum()

        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
        for platform in ("cuda", "tpu"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            divides = size % dilation == 0
            assert text.count("stablehlo.convolution(") == (3 if divides or dilation > size else 0)
            assert text.count("stablehlo.dot_general") == (0 if divides or dilation > size else 27)
            for line in text.splitlines():
                if "stablehlo.convolution(" in line:
                    assert "rhs_dilate = [1, 1]" in line or "rhs_dilate" not in line
                    assert "stride = [1, 1]" in line or "stride" not in line


@pytest.mark.parametrize("on_cpu", ["XLA", *WINOGRAD])
def test_batches_can_be_of_any_size(on_cpu):
    """Programs that are exported have no number of images."""
    shape = Shape(28, 28, 5, 6, 3, 1, 2)
    kernel = jnp.asarray(draw(shape, "float32")[1])
    lowering = Lowering(choices=(Choice("cpu", shape, (on_cpu,) * 3),))
    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(
        jax.jit(lambda x: convolution.convolve(x, kernel, 1, 2, lowering)),
        platforms=("cpu", "cuda", "tpu"),
    )(jax.ShapeDtypeStruct((batch, 28, 28, 5), jnp.float32))
    for images in (1, 3):
        x = jnp.ones((images, 28, 28, 5))
        np.testing.assert_allclose(
            exported.call(x), convolve_by_xla(x, kernel, 1, 2), rtol=1e-5, atol=1e-5
        )


PRECISIONS = {"cuda": "DEFAULT", "rocm": "DEFAULT", "tpu": "HIGH", "cpu": "HIGHEST"}


@pytest.mark.parametrize("platform", PRECISIONS)
@pytest.mark.parametrize("dilation", [1, 4, 6])
def test_precision_of_products(platform, dilation):
    """Float32 is exact everywhere, TF32 where it is asked for and the device has it."""
    x, kernel = jnp.ones((1, 28, 28, 64)), jnp.ones((3, 3, 64, 64))

    def lower(dtype, lowering):
        def loss(x, kernel):
            return jnp.square(convolution.convolve(x, kernel, 1, dilation, lowering)).sum()

        grad = jax.jit(jax.grad(loss, (0, 1)))
        arrays = x.astype(dtype), kernel.astype(dtype)
        return grad.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()

    def count(text):
        names = ("DEFAULT", "HIGHEST", "HIGH")
        return {name: text.count(f"{name}, {name}]") + text.count(f"{name}>]") for name in names}

    exact, rounded = lower("float32", Lowering()), lower("float32", Lowering(tensorfloat32=True))
    if platform == "cpu":
        assert list_products(exact) == list_products(rounded)
        return
    for text, wanted in ((exact, "HIGHEST"), (rounded, PRECISIONS[platform])):
        products = text.count("stablehlo.convolution(") + text.count("stablehlo.dot_general")
        assert products >= 3
        found = count(text)
        assert found.pop(wanted) >= products
        assert not any(found.values())


def test_what_was_chosen_is_done():
    """Of a shape, and on a platform, for which there is a choice; others follow the rules."""
    shape = Shape(28, 28, 8, 4, 3, 1, 2)
    lowering = Lowering(choices=(Choice("cuda", shape, ("inside", "XLA", "space to batch")),))
    x, kernel = jnp.ones((1, 28, 28, 8)), jnp.ones((3, 3, 8, 4))

    def text(platform, lowering, size=28):
        def loss(x, kernel):
            return jnp.square(convolution.convolve(x, kernel, 1, 2, lowering)).sum()

        grad = jax.jit(jax.grad(loss, (0, 1))).trace(x[:, :size], kernel)
        return grad.lower(lowering_platforms=(platform,)).as_text()

    found = text("cuda", lowering)
    assert found.count("dot_general") == 9 and "rhs_dilate = [2, 2]" in found
    for platform in ("cpu", "tpu", "rocm"):
        assert list_products(text(platform, lowering)) == list_products(text(platform, BY_RULES))
    others = (list_products(text("cuda", each, 14)) for each in (lowering, BY_RULES))
    assert next(others) == next(others)


def test_padding_costs_nothing():
    """At dilation 18 on 14 x 14 pixels only the center of the kernel meets the image."""
    x, kernel = jnp.ones((1, 14, 14, 512)), jnp.ones((3, 3, 512, 8))

    def program(dilation, platform):
        convolve = jax.jit(lambda *arguments: convolution.convolve(*arguments, 1, dilation))
        return convolve.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert program(18, "cpu").count("dot_general") == 1
    assert program(12, "cpu").count("dot_general") == 9
    for platform in ("cuda", "tpu"):
        (line,) = (line for line in program(18, platform).splitlines() if ".convolution(" in line)
        assert "tensor<1x1x512x8xf32>" in line
        assert program(12, platform).count("dot_general") == 9


def test_frozen_weights_cost_no_backward_pass():
    """A program with the gradient for the input alone has no product over pixels."""
    x, kernel = jnp.ones((1, 8, 8, 64)), jnp.ones((3, 3, 64, 64))

    def flops(argument):
        def loss(*arguments):
            return jnp.square(convolution.convolve(*arguments, 1, 1)).sum()

        compiled = jax.jit(jax.grad(loss, argument)).lower(x, kernel).compile()
        return compiled.cost_analysis()["flops"]

    forward = 2 * 8 * 8 * 64 * 64 * 9
    assert flops(0) < 2.3 * forward
    assert flops((0, 1)) > 2.5 * forward


def test_accelerators_keep_the_convolution_of_xla():
    """Programs are lowered for accelerators without having one."""

    def loss(kernels):
        x = jnp.ones((1, 8, 8, 64))
        for kernel in kernels:
            x = convolution.convolve(x, kernel, 1, 1)
        return x.sum()

    kernel = [jnp.ones((3, 3, 64, 64)), jnp.ones((1, 1, 64, 64))]
    text = {
        platform: jax.jit(jax.grad(loss))
        .trace(kernel)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "dot_general" in text["cpu"]
    assert "dot_general" not in text["cuda"] and "convolution" in text["cuda"]
    assert "dot_general" not in text["tpu"] and "convolution" in text["tpu"]
