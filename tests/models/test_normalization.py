import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wsss_jax.models.materialize import materialize
from wsss_jax.models.normalization import normalize_batch

EPSILON = 1e-5


def _draw(weight):
    rng = np.random.default_rng(1)
    x = 3 * rng.standard_normal((len(weight), 5, 4, 6)) + 2
    scale, bias = rng.uniform(0.5, 2, 6), rng.standard_normal(6)
    return x, np.array(weight, float), scale, bias, rng.standard_normal(x.shape)


def _write_out(x, weight, scale, bias, axis_name=None):
    """The definition, to be differentiated by JAX."""

    def add(x):
        return x if axis_name is None else lax.psum(x, axis_name)

    rows = weight[:, None, None, None]
    count = add(weight.sum()) * x[0, ..., 0].size
    mean = add((x * rows).sum((0, 1, 2))) / count
    var = add((jnp.square(x - mean) * rows).sum((0, 1, 2))) / count
    return (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias


@pytest.mark.parametrize("weight", [(1, 1, 1), (1, 0, 1, 1)], ids=["all", "three of four"])
def test_gradients_are_those_of_the_definition(weight):
    with jax.enable_x64(True):
        x, weight, scale, bias, gradient = map(jnp.asarray, _draw(weight))

        def by_hand(x, scale, bias):
            return normalize_batch(x, weight, scale, bias, EPSILON, None)[0]

        y, find_gradients = jax.vjp(by_hand, x, scale, bias)
        expected, find_expected = jax.vjp(
            lambda x, scale, bias: _write_out(x, weight, scale, bias), x, scale, bias
        )
        np.testing.assert_allclose(y, expected, atol=1e-12)
        found, wanted = find_gradients(gradient), find_expected(gradient)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, wanted)


def test_gradients_over_replicas_are_those_of_the_whole_batch():
    with jax.enable_x64(True):
        x, weight, scale, bias, gradient = map(jnp.asarray, _draw((1, 1, 1, 0)))
        _, find_expected = jax.vjp(
            lambda x, scale, bias: _write_out(x, weight, scale, bias), x, scale, bias
        )

        def differentiate(x, weight, gradient):
            _, find_gradients = jax.vjp(
                lambda x, scale, bias: normalize_batch(x, weight, scale, bias, EPSILON, "r")[0],
                x,
                scale,
                bias,
            )
            of_x, *of_parameters = find_gradients(gradient)
            return of_x, [lax.psum(each, "r") for each in of_parameters]

        shards = [array.reshape(2, 2, *array.shape[1:]) for array in (x, weight, gradient)]
        of_x, of_parameters = jax.vmap(differentiate, axis_name="r")(*shards)
        expected_of_x, *expected = find_expected(gradient)
        np.testing.assert_allclose(of_x.reshape(x.shape), expected_of_x, atol=1e-11)
        for found, wanted in zip(of_parameters, expected, strict=True):
            np.testing.assert_allclose(found, [wanted, wanted], atol=1e-11)


def test_bfloat16_is_summed_up_in_float32():
    x, weight, scale, bias, _ = (jnp.float32(array) for array in _draw((1, 1, 1)))
    x = x.astype(jnp.bfloat16)
    y, moments = normalize_batch(x, weight, scale, bias, EPSILON, None)
    exact, expected = normalize_batch(x.astype(jnp.float32), weight, scale, bias, EPSILON, None)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moments.mean, expected.mean)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_what_is_materialized_is_computed_once():
    blocks = 8

    def add_up(x, additions, hold):
        products = []
        for addition in additions:
            x = hold(jax.nn.relu(x + addition))
            products.append(x @ addition.T)
        return x, products

    def count_sums(hold):
        def differentiate(x, additions):
            y, find_gradients = jax.vjp(lambda *a: add_up(*a, hold), x, additions)
            return y, find_gradients(y)

        arrays = jnp.ones((16, 16)), jnp.ones((blocks, 16, 16))
        return jax.jit(differentiate).lower(*arrays).compile().as_text().count(" maximum(")

    assert count_sums(materialize) == blocks
    assert count_sums(lambda x: x) > 2 * blocks


def test_what_is_materialized_stays_what_it_is():
    x = jnp.float32([1.5, -2])
    y, find_gradient = jax.vjp(jax.jit(materialize), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(find_gradient(3 * x)[0], 3 * x)
    np.testing.assert_array_equal(jax.vmap(materialize)(x), x)
