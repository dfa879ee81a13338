"""The matrix products against XLA's own convolution and gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wsss_jax.models import convolution

CHANNELS = (3, 5), (64, 6), (513, 4), (520, 1030)
KERNELS = (3, 1, 1), (3, 2, 1), (3, 1, 4), (1, 2, 1)
# At 18 all but the middle row of the kernel meets only padding.
WIDE = [((513, 4), (3, 2, 4)), ((513, 4), (5, 1, 6)), ((513, 4), (3, 1, 18)), ((64, 6), (5, 1, 6))]


@pytest.mark.parametrize("depths,shape", [*itertools.product(CHANNELS, KERNELS), *WIDE])
def test_gradients_are_those_of_xla(depths, shape):
    (channels, features), (size, stride, dilation) = depths, shape
    rng = np.random.default_rng(channels + stride)
    x = rng.normal(size=(2, 14, 20, channels))
    kernel = rng.normal(size=(size, size, channels, features))
    padding = dilation * (size - 1) // 2

    def own(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    with jax.enable_x64(True):
        expected, pullback = jax.vjp(own, jnp.asarray(x), jnp.asarray(kernel))
        found, our_pullback = jax.vjp(
            lambda *a: convolution.convolve(*a, stride, dilation),
            jnp.asarray(x),
            jnp.asarray(kernel),
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        gradient = jnp.asarray(rng.normal(size=expected.shape))
        for ours, theirs in zip(our_pullback(gradient), pullback(gradient)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


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
        (line,) = (line for line in program(12, platform).splitlines() if ".convolution(" in line)
        assert "tensor<3x3x512x8xf32>" in line


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
