"""Normalizations folded into convolutions: the same predictions, with less to compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.models.deeplab import DeepLabV3Plus
from wsss_jax.models.folding import fold
from wsss_jax.models.resnet38 import ResNet38

NETWORKS = {
    "deeplab": DeepLabV3Plus(3, width=1 / 16, blocks=(1, 2, 1, 2)),
    "resnet38": ResNet38(3, width=1 / 32),
}
# Normalizations left: none of DeepLabV3+; of ResNet38 those after a sum, one for each of its 17
# blocks and bn7.
LEFT = {"deeplab": set(), "resnet38": {"bn_branch2a", "bn7"}}


def _draw_variables(network):
    """Draws variables whose normalizations all have factors and offsets of their own."""
    shapes = jax.eval_shape(
        lambda key: network.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0)
    )
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        spread = 0.3 if leaf.ndim == 1 else np.sqrt(1 / np.prod(leaf.shape[:-1]))
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _list_norms(variables):
    leaves = jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
    return {path[-2].key for path, _ in leaves}


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_predict_the_same(name):
    network = NETWORKS[name]
    variables = _draw_variables(network)
    folded = fold(variables, network.FOLDED)
    assert _list_norms(folded) == LEFT[name] < _list_norms(variables)
    assert "bn_branch2b2" in _list_norms(variables) or name == "deeplab"

    image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    predict = jax.jit(lambda variables: network.apply(variables, image, train=False))
    (logits, taps), (again, folded_taps) = predict(variables), predict(folded)
    for tap, expected in {**taps, "logits": logits}.items():
        found = {**folded_taps, "logits": again}[tap]
        scale = float(jnp.abs(expected).max())
        assert scale > 1e-3
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale)


def test_pairs_that_are_not_there_change_nothing():
    network = NETWORKS["resnet38"]
    variables = _draw_variables(network)
    folded = fold(variables, {"conv1a": "bn1a", "fc8": "bn_branch2a"})
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    assert all(map(np.array_equal, jax.tree.leaves(folded), jax.tree.leaves(variables)))
