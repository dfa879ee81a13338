import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import reference
from wsss_jax.errors import InputError
from wsss_jax.interop.torch_names import to_flax, to_torch
from wsss_jax.models.deeplab import DeepLabV3Plus
from wsss_jax.models.resnet38 import ResNet38


def _state_dict(phase):
    """Names and shapes of the published networks, every entry filled with its own position."""
    return {
        name: np.full(shape, index, np.float32)
        for index, (name, shape) in enumerate(reference.shapes(phase).items())
    }


@pytest.mark.parametrize(
    ("phase", "model"),
    [("phase1", ResNet38(num_classes=4)), ("phase2", DeepLabV3Plus(num_classes=4))],
)
def test_every_published_name_has_its_place_in_the_network(phase, model):
    state_dict = _state_dict(phase)
    variables = to_flax(state_dict)
    images = jnp.zeros((1, 64, 64, 3))
    expected = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    shapes = jax.tree.map(np.shape, variables)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, dict(expected))

    back = to_torch(variables)
    assert set(back) == set(state_dict)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(back[name], value)


def test_names_kinds_and_layout():
    kernel = np.arange(2 * 3 * 5 * 5, dtype=np.float32).reshape(2, 3, 5, 5)
    vector = np.arange(4, dtype=np.float32)
    state_dict = {
        "b4_5.conv_branch2a.weight": kernel,
        "backbone.layer1.10.downsample.0.weight": kernel + 1,
        "backbone.layer1.10.downsample.1.weight": vector,
        "decoder.last_conv.8.bias": vector + 1,
        "bn7.running_mean": vector + 2,
        "bn7.running_var": vector + 3,
    }
    variables = to_flax({**state_dict, "bn7.num_batches_tracked": np.int64(7)})
    params = variables["params"]
    ours = params["b4_5"]["conv_branch2a"]["kernel"]
    assert ours[1, 4, 2, 0] == kernel[0, 2, 1, 4]
    assert set(params["backbone"]["layer1_10"]) == {"downsample_0", "downsample_1"}
    np.testing.assert_array_equal(params["backbone"]["layer1_10"]["downsample_1"]["scale"], vector)
    np.testing.assert_array_equal(params["decoder"]["last_conv_8"]["bias"], vector + 1)
    np.testing.assert_array_equal(variables["batch_stats"]["bn7"]["mean"], vector + 2)
    np.testing.assert_array_equal(variables["batch_stats"]["bn7"]["var"], vector + 3)
    back = to_torch(variables)
    assert set(back) == set(state_dict)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(back[name], value)


def test_a_foreign_entry_is_named():
    with pytest.raises(InputError, match=r"head\.weight"):
        to_flax({"head.weight": np.zeros((3, 4), np.float32)})
    with pytest.raises(InputError, match=r"head\.alpha"):
        to_flax({"head.alpha": np.zeros(3, np.float32)})
