from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.models.attention import (
    find_peaks,
    mix_attention,
    normalize_attention,
    progressive_dropout_attention,
)

# One program, as in the networks: one operation at a time, compiling takes many times as long.
_attend = jax.jit(progressive_dropout_attention, static_argnames=("relu", "divisor", "normalize"))


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 1, (2, 4, 5, 6)).astype(np.float32)
    class_weights = rng.standard_normal((6, 3)).astype(np.float32)
    return features, class_weights


def _transcribed(features, class_weights, mu, relu, divisor):
    """Eq. 7-10 and 4 example by example and class by class."""
    out = np.zeros_like(features)
    for index, example in enumerate(features):
        attention = np.zeros(example.shape[:2], np.float32)
        for weights in class_weights.T:
            activation = example @ weights
            if relu:
                activation = np.maximum(activation, 0)
            activation = np.where(activation > mu * activation.max(), 0, activation)
            attention += activation
        out[index] = example * (attention / divisor)[..., None]
    return out


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("divisor", [3, 4])
@pytest.mark.parametrize("mu", [1.0, 0.65])
def test_equals_the_transcribed_equations(case, mu, relu, divisor):
    got = _attend(*case, mu, relu=relu, divisor=divisor)
    np.testing.assert_allclose(got, _transcribed(*case, mu, relu, divisor), atol=1e-5)


def test_peaks_are_the_maxima_of_the_maps(case):
    features, class_weights = case
    expected = [[(each @ weights).max() for weights in class_weights.T] for each in features]
    np.testing.assert_allclose(find_peaks(features, class_weights), expected, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda weights: find_peaks(features, weights).sum()))(class_weights)
    assert not gradient.any()


def test_gradient_flows_through_features_and_attention(case):
    features, class_weights = case

    def total(features, class_weights):
        attended = _attend(features, class_weights, 0.7, relu=False, divisor=3)
        return jnp.square(attended).sum()

    differentiate = jax.jit(jax.grad(total, argnums=(0, 1)))
    by_features, by_weights = differentiate(features, class_weights)
    assert np.abs(by_weights).max() > 0
    # With the threshold held, f * a(f) is homogeneous of degree 2 in f, and its square of degree
    # 4 (Euler); an attention without gradient would give half.
    np.testing.assert_allclose(
        (by_features * features).sum(), 4 * total(features, class_weights), rtol=1e-4
    )


def test_mu_may_be_traced_and_dtype_is_kept(case):
    features, class_weights = case
    attend = jax.jit(lambda f, w, mu: progressive_dropout_attention(f, w, mu, relu=True, divisor=3))
    low = attend(jnp.asarray(features, jnp.bfloat16), class_weights, 0.65)
    high = attend(jnp.asarray(features, jnp.bfloat16), class_weights, 0.95)
    assert low.dtype == jnp.bfloat16
    assert attend._cache_size() == 1
    assert np.abs(np.asarray(low - high, np.float32)).max() > 0


@pytest.mark.parametrize("relu", [True, False])
def test_a_normalized_attention_is_that_of_the_equations_over_its_maximum(case, relu):
    features, class_weights = case
    attended = _transcribed(features, class_weights, 0.8, relu, divisor=3)
    attention = (attended / features).mean(axis=-1, keepdims=True)
    largest = np.abs(attention).max(axis=(1, 2, 3), keepdims=True)
    got = _attend(*case, 0.8, relu=relu, divisor=3, normalize=True)
    np.testing.assert_allclose(got, attended / largest, rtol=1e-4, atol=1e-6)


def test_a_normalized_attention_does_not_grow_with_the_weights(case):
    """Its logits are linear in the weights; without it they are quadratic."""
    features, class_weights = case
    for normalize, power in ((True, 1), (False, 2)):
        one, three = (
            _attend(features, scale * class_weights, 0.8, relu=True, divisor=3, normalize=normalize)
            @ (scale * class_weights)
            for scale in (1, 3)
        )
        np.testing.assert_allclose(three, 3**power * one, rtol=1e-4, atol=1e-5)


def test_an_image_without_attention_keeps_its_features_and_its_gradient(case):
    """The second image has no map above 0; the released code gives it zeros and no gradient."""
    features, class_weights = case
    class_weights = np.abs(class_weights)
    features = np.stack([features[0], -features[1]])

    def attend(features, weights, normalize):
        return _attend(features, weights, 1.0, relu=True, divisor=3, normalize=normalize)

    def total(features, weights, normalize):
        return (attend(features, weights, normalize) @ weights).sum()

    np.testing.assert_array_equal(attend(features, class_weights, True)[1], features[1])
    assert not np.any(attend(features, class_weights, False)[1])
    for normalize in (True, False):
        differentiate = jax.jit(jax.grad(partial(total, normalize=normalize), argnums=(0, 1)))
        gradients = differentiate(features, class_weights)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert np.any(gradients[0][1]) == normalize


def test_the_attention_keeps_its_sign_and_its_bound():
    attention = np.float32([[-2.0, 0.5], [1e-5, -1e-4]])[:, :, None, None]
    normalized = normalize_attention(jnp.asarray(attention))
    expected = np.float32([[-1.0, 0.25], [1.0, 1.0]])[:, :, None, None]
    np.testing.assert_array_equal(normalized, expected)


def test_the_attention_comes_in_line_by_line(case):
    features, class_weights = case
    attend = jax.jit(
        lambda share: progressive_dropout_attention(
            features, class_weights, 0.8, relu=True, divisor=3, share=share
        )
    )
    whole = _attend(*case, 0.8, relu=True, divisor=3)
    np.testing.assert_array_equal(attend(0.0), features)
    np.testing.assert_allclose(attend(0.25), 0.75 * features + 0.25 * whole, rtol=1e-5)
    np.testing.assert_allclose(attend(1.0), whole, rtol=1e-5, atol=1e-7)
    assert attend._cache_size() == 1
    assert float(mix_attention(jnp.float32(0.2), 0.5)) == pytest.approx(0.6)
