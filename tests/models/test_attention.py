import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.models.attention import progressive_dropout_attention


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
    got = progressive_dropout_attention(*case, mu, relu=relu, divisor=divisor)
    np.testing.assert_allclose(got, _transcribed(*case, mu, relu, divisor), atol=1e-5)


def test_gradient_flows_through_features_and_attention(case):
    features, class_weights = case

    def total(features, class_weights):
        attended = progressive_dropout_attention(
            features, class_weights, 0.7, relu=False, divisor=3
        )
        return jnp.square(attended).sum()

    by_features, by_weights = jax.grad(total, argnums=(0, 1))(features, class_weights)
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
