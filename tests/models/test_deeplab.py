import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import draw_variables
from wsss_jax.models.deeplab import DeepLabV3Plus

SMALL = {"num_classes": 3, "width": 1 / 16, "blocks": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def variables():
    return draw_variables(DeepLabV3Plus(**SMALL), np.zeros((1, 32, 32, 3), np.float32))


@functools.cache  # which compiles and traces a model once for all tests
def _jitted(model):
    return jax.jit(model.apply, static_argnames=("train", "mutable"))


def test_full_width_has_the_published_size():
    model = DeepLabV3Plus(num_classes=4)
    images = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 59_339_940
    assert set(shapes["params"]) == {"backbone", "aspp", "decoder"}


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_any_image_size(variables, size):
    apply = _jitted(DeepLabV3Plus(**SMALL))
    images = jnp.ones((2, *size, 3))
    logits, taps = apply(variables, images, train=False)
    assert logits.shape == (2, *size, 3)
    assert taps["backbone"].shape[1:3] == tuple(-(-n // 16) for n in size)
    assert taps["low_level"].shape[1:3] == tuple(-(-n // 4) for n in size)


def test_padding_examples_do_not_count(variables):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (4, 32, 32, 3)).astype(np.float32)
    apply = _jitted(DeepLabV3Plus(**SMALL, dropout_rates=(0.0, 0.0, 0.0)))
    (whole, _), updates = apply(variables, images, train=True, mutable="batch_stats")
    (filled, _), filled_updates = apply(
        variables,
        np.concatenate([images, np.ones_like(images[:2])]),
        train=True,
        weight=np.array([1, 1, 1, 1, 0, 0], np.float32),
        mutable="batch_stats",
    )
    np.testing.assert_allclose(filled[:4], whole, atol=1e-3 * np.abs(whole).max())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3),
        filled_updates["batch_stats"],
        updates["batch_stats"],
    )


def test_dropout_acts_in_training_only(variables):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)
    apply = _jitted(DeepLabV3Plus(**SMALL))

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return apply(variables, images, train=True, rngs=rngs, mutable="batch_stats")[0][0]

    np.testing.assert_array_equal(train(1), train(1))
    assert np.abs(train(1) - train(2)).max() > 1e-4


def test_bfloat16_keeps_float32_logits(variables):
    images = jnp.ones((1, 32, 32, 3))
    apply = _jitted(DeepLabV3Plus(**SMALL, dtype=jnp.bfloat16))
    logits, taps = apply(variables, images, train=False)
    assert logits.dtype == jnp.float32
    assert taps["decoder"].dtype == jnp.bfloat16
