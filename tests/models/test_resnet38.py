import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import draw_variables
from wsss_jax.models.resnet38 import ResNet38

SMALL = {"num_classes": 3, "width": 1 / 16, "dropout_rates": (0.0, 0.0, 0.0)}


@functools.cache  # which compiles and traces a model once for all tests
def _jitted(model):
    return jax.jit(model.apply, static_argnames=("train", "mutable"))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, (4, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
    return draw_variables(ResNet38(**SMALL), images)


def test_mu_is_traced_and_zero_means_no_attention(variables, images):
    model = ResNet38(**SMALL, attention_relu=True)
    apply = jax.jit(lambda variables, x, mu: model.apply(variables, x, train=True, mu=mu))
    (whole, taps), (half, _), (off, _) = (
        apply(variables, images, np.float32(mu)) for mu in (1, 0.5, 0)
    )
    assert apply._cache_size() == 1, "mu recompiled the model"
    assert not np.allclose(whole, half) and not np.allclose(whole, off)
    plain, _ = _jitted(model)(variables, images, train=True)
    np.testing.assert_allclose(off, plain, atol=1e-5)
    maps = np.einsum("bhwd,dc->bhwc", taps["bn7"], variables["params"]["fc8"]["kernel"][0, 0])
    np.testing.assert_allclose(taps["peaks"], maps.max(axis=(1, 2)), atol=1e-5)


def test_full_width_has_the_published_size():
    model = ResNet38(num_classes=4)
    images = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 105_087_296


def test_init_holds_parameters_and_statistics_only(variables):
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_frozen_batch_norm_ignores_the_batch_in_training(variables, images):
    model = ResNet38(**SMALL)
    (trained, _), updates = _jitted(model)(variables, images, train=True, mutable="batch_stats")
    evaluated, _ = _jitted(model)(variables, images, train=False)
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_trained_batch_norm_uses_the_batch_and_its_weights(variables, images):
    model = ResNet38(**SMALL, frozen_batch_norm=False)
    padded = np.concatenate([images, np.ones_like(images[:2])])
    weight = np.array([1, 1, 1, 1, 0, 0], np.float32)
    apply = _jitted(model)
    (whole, _), updates = apply(variables, images, train=True, mutable="batch_stats")
    (filled, _), filled_updates = apply(
        variables, padded, train=True, weight=weight, mutable="batch_stats"
    )
    np.testing.assert_allclose(filled[:4], whole, atol=1e-4)
    mean = updates["batch_stats"]["b3"]["bn_branch2a"]["mean"]
    assert np.abs(mean).max() > 0
    np.testing.assert_allclose(
        filled_updates["batch_stats"]["b3"]["bn_branch2a"]["mean"], mean, atol=1e-5
    )


def test_dropout_acts_in_training_only(variables, images):
    apply = _jitted(ResNet38(num_classes=3, width=1 / 16))
    rngs = {"dropout": jax.random.key(1)}
    first, _ = apply(variables, images, train=True, rngs=rngs)
    again, _ = apply(variables, images, train=True, rngs=rngs)
    other, _ = apply(variables, images, train=True, rngs={"dropout": jax.random.key(2)})
    still, _ = apply(variables, images, train=False)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    assert np.abs(first - still).max() > 1e-4


def test_attention_divides_by_the_number_of_classes_by_default(variables, images):
    kwargs = {"train": True, "mu": jnp.float32(0.8)}
    default, _ = _jitted(ResNet38(**SMALL))(variables, images, **kwargs)
    three, _ = _jitted(ResNet38(**SMALL, attention_divisor=3))(variables, images, **kwargs)
    four, _ = _jitted(ResNet38(**SMALL, attention_divisor=4))(variables, images, **kwargs)
    np.testing.assert_array_equal(default, three)
    np.testing.assert_allclose(four, three * 3 / 4, rtol=1e-4)


def test_bfloat16_keeps_float32_logits(variables, images):
    logits, taps = _jitted(ResNet38(**SMALL, dtype=jnp.bfloat16))(variables, images, train=False)
    exact, _ = _jitted(ResNet38(**SMALL))(variables, images, train=False)
    assert logits.dtype == jnp.float32
    assert taps["b5_2"].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, exact, atol=0.05 * np.abs(exact).max())


def test_bfloat16_is_near_float32_where_only_logits_are_asked_for(variables, images):
    # Another program than with the feature maps: XLA merges layers whose results nobody sees.
    def classify(dtype):
        network = ResNet38(**SMALL, dtype=dtype)
        return jax.jit(lambda v, x: network.apply(v, x, train=False)[0])(variables, images)

    exact = classify(jnp.float32)
    tolerance = 0.05 * np.abs(exact).max()
    np.testing.assert_allclose(classify(jnp.bfloat16), exact, atol=tolerance)
