import ast
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_variables
from tests.shallow_network import Shallow
from wsss_jax import config_rules
from wsss_jax.cam import average_scales, class_activation_maps, grad_cam
from wsss_jax.errors import InputError
from wsss_jax.methods.contract import load_method
from wsss_jax.models.resnet38 import ResNet38
from wsss_jax.models.x17 import X17

LAYERS = ("b4_3", "b4_5", "b5_2", "bn7")


@pytest.fixture(scope="module")
def small():
    images = np.random.default_rng(0).uniform(0, 1, (3, 48, 40, 3)).astype(np.float32)
    model = ResNet38(num_classes=5, width=1 / 16)
    return model, draw_variables(model, images), images


def _compiled_grad_cam(model, layers):
    return jax.jit(lambda variables, images: grad_cam(model, variables, images, layers))


@pytest.fixture(scope="module")
def opened(small):
    """Maps and logits of Grad-CAM, and the logits and taps of the network itself."""
    model, variables, images = small
    predict = jax.jit(partial(model.apply, train=False))
    maps = _compiled_grad_cam(model, ("b4_5", "bn7"))(variables, images)
    return *maps, *predict(variables, images)


def test_grad_cam_equals_a_loop_over_classes(small, opened):
    model, variables, images = small
    maps, logits, expected_logits, taps = opened
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)

    @jax.jit
    def gradient(perturbation, k):
        def class_sum(perturbation):
            perturbed = {**variables, "perturbations": {"b4_5": perturbation}}
            return model.apply(perturbed, images, train=False)[0][:, k].sum()

        return jax.grad(class_sum)(perturbation)

    for k in range(5):
        weights = gradient(jnp.zeros_like(taps["b4_5"]), k).mean(axis=(1, 2))
        expected = jnp.einsum("bhwd,bd->bhw", taps["b4_5"], weights)
        np.testing.assert_allclose(maps["b4_5"][:, k], expected, atol=1e-5 * np.abs(expected).max())


def test_grad_cam_of_the_last_layer_has_a_closed_form(small, opened):
    _, variables, _ = small
    maps, _, _, taps = opened
    features = taps["bn7"]
    class_weights = variables["params"]["fc8"]["kernel"][0, 0]
    pixels = features.shape[1] * features.shape[2]
    expected = jnp.einsum("bhwd,dc->bchw", features, class_weights) / pixels
    np.testing.assert_allclose(maps["bn7"], expected, atol=1e-5 * np.abs(expected).max())


def _shrink_like_grad_cam(sizes, image):
    """One map: the mean of every 8 x 8 pixels, divided by their number as in Grad-CAM."""
    sizes.append(image.shape[1:3])
    batch, height, width, _ = image.shape
    cells = image.astype(jnp.float32).mean(axis=-1).reshape(batch, height // 8, 8, width // 8, 8)
    maps = cells.mean(axis=(2, 4))[:, None]
    return {"layer": maps / (maps.shape[2] * maps.shape[3])}


def test_scales_count_alike_whatever_their_size():
    sizes = []
    gray = jnp.full((2, 32, 40, 3), 100, jnp.uint8)
    average = jax.jit(average_scales, static_argnums=(0, 2))  # which compiles one program
    maps = average(partial(_shrink_like_grad_cam, sizes), gray, (0.5, 1.0, 1.3, 0.1))
    assert sizes == [(16, 16), (32, 40), (40, 48), (8, 8)]  # multiples of 8 pixels
    assert maps["layer"].shape == (2, 1, 32, 40)
    np.testing.assert_allclose(maps["layer"], 100, rtol=1e-5)
    once = average(partial(_shrink_like_grad_cam, sizes), gray, (1.0,))
    np.testing.assert_allclose(once["layer"], np.full((2, 1, 4, 5), 100 / 20))


def test_the_mean_of_two_scales_by_pillow():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    half = np.asarray(Image.fromarray(image[0]).resize((16, 16), Image.Resampling.BILINEAR))[None]
    expected = np.zeros((32, 32))
    for pixels in (image, half):
        maps = np.asarray(_shrink_like_grad_cam([], jnp.asarray(pixels))["layer"][0, 0])
        maps = Image.fromarray(maps * maps.size)  # of floats
        expected += np.asarray(maps.resize((32, 32), Image.Resampling.BILINEAR)) / 2
    average = jax.jit(average_scales, static_argnums=(0, 2))
    maps = average(partial(_shrink_like_grad_cam, []), image, (1.0, 0.5))
    np.testing.assert_allclose(maps["layer"][0, 0], expected, atol=1)  # of 255: rounded pixels


def test_grad_cam_at_two_scales_is_the_mean_of_plain_maps():
    """At "bn7", where the two are the same but for the number of pixels."""
    image = jnp.asarray(np.random.default_rng(1).integers(0, 256, (1, 48, 48, 3), np.uint8))
    model = Shallow(5)
    variables = draw_variables(model, image / 255)
    sizes = []

    def open_layers(image):
        return grad_cam(model, variables, image / 255, ("bn7",))[0]

    def open_plainly(image):
        sizes.append(image.shape[1])
        features = model.apply(variables, image / 255, train=False)[1]["bn7"]
        maps = class_activation_maps(
            features, variables["params"]["fc8"]["kernel"][0, 0], relu=False
        )
        return {"bn7": maps / (maps.shape[2] * maps.shape[3])}

    maps, plain = (
        jax.jit(partial(average_scales, function, scales=(0.5, 1.0)))(image=image)["bn7"]
        for function in (open_layers, open_plainly)
    )
    assert sizes == [24, 48] and maps.shape == (1, 5, 48, 48)
    np.testing.assert_allclose(maps, plain, atol=1e-4 * np.abs(plain).max())


def test_maps_are_float32_in_bfloat16(small):
    _, variables, images = small
    model = ResNet38(num_classes=5, width=1 / 16, dtype=jnp.bfloat16)
    maps, logits = jax.eval_shape(_compiled_grad_cam(model, ("b5_2",)), variables, images)
    assert maps["b5_2"].dtype == logits.dtype == jnp.float32
    assert maps["b5_2"].shape == (3, 5, 6, 5)


def test_an_unknown_layer_is_named(small):
    with pytest.raises(InputError, match=r"'b9'.*b4_5"):
        grad_cam(*small, ("b4_5", "b9"))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("phase1", ResNet38(num_classes=5, width=1 / 16)),
        ("sccam", ResNet38(num_classes=5, sub_classes=15, width=1 / 16)),
        ("histosegnet", X17(num_classes=5, width=1 / 16)),
    ],
)
def test_all_layers_that_are_offered_work(name, model):
    images = np.zeros((3, 48, 40, 3), np.float32)
    init = partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), images)

    def open_layers(layers):
        return jax.eval_shape(partial(grad_cam, model, layers=layers), variables, images)[0]

    for unknown in ("b9", "sub_logits", "peaks"):
        with pytest.raises(InputError, match=rf"'{unknown}' has no output for Grad-CAM") as caught:
            open_layers((unknown,))
    listed = ast.literal_eval(str(caught.value).partition("choose from ")[2])
    maps = open_layers(listed)
    assert all(maps[layer].shape[:2] == (3, 5) for layer in listed)
    layers = load_method(name).LAYERS
    assert set(layers) <= set(listed) and all(map(config_rules.LAYER.allows, layers))
    assert all(layer in config_rules.LAYER.text for layer in layers)


@pytest.mark.parametrize("relu", [True, False])
def test_plain_maps_are_clipped_at_zero_when_asked(relu):
    features = jnp.array([[[[1.0, 2.0], [3.0, 0.0]]]])
    class_weights = jnp.array([[1.0, -1.0], [0.5, 0.0]])
    expected = [[[[2.0, 3.0]], [[0.0 if relu else -1.0, 0.0 if relu else -3.0]]]]
    maps = class_activation_maps(features, class_weights, relu=relu)
    np.testing.assert_array_equal(maps, expected)
