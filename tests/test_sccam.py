"""SC-CAM: its two classifiers, losses, multi-scale maps and label maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import base_sccam
from tests.conftest import SIZE
from tests.shallow_network import Shallow
from wsss_jax import cam, pixels, symmetries
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_names
from wsss_jax.methods import sccam
from wsss_jax.methods.averaging import average_predictions
from wsss_jax.methods.contract import load_method
from wsss_jax.methods.prediction import Prediction

CLASSES, PER_CLASS = 3, 2


def tiny_sccam(root, number=0):
    """A configuration of a round that trains in seconds."""
    config = base_sccam.train("", "tiny", number)
    if not number:
        config.data.root, config.data.patch_size = str(root), SIZE
    config.data.workers = 0
    config.model.width = 1 / 16
    config.batch_size, config.epochs = 4, 2
    config.stop_epoch = 0
    config.cam.scales, config.cam.flip = (1.0,), False
    return config


def _initialize(network):
    init = jax.jit(network.init, static_argnames="train")
    return init(jax.random.key(0, impl="rbg"), jnp.zeros((1, 24, 40, 3)), train=False)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def narrow(image):
    """A configuration, its network with both classifiers, the variables, and images."""
    config = tiny_sccam("unused")
    config.model.batch_norm, config.model.sub_categories = "trained", PER_CLASS
    network = sccam.build_network(config, CLASSES)
    return config, network, _initialize(network), image


@pytest.fixture(scope="module")
def shallow(image):
    """The same of a network that is quickly computed in many sizes."""
    config = tiny_sccam("unused")
    config.cam.scales, config.cam.flip = (1.0, 0.5), True
    return config, Shallow(CLASSES), _initialize(Shallow(CLASSES)), image


def test_both_classifiers_are_drawn_after_xavier(narrow):
    _, network, variables, _ = narrow
    flat = flatten_dict(variables["params"], sep="/")
    sizes = {"fc8/kernel": CLASSES, "fc8_sub/kernel": CLASSES * PER_CLASS}
    assert {name: flat[name].shape for name in sizes} == {
        name: (1, 1, 256, size) for name, size in sizes.items()
    }
    for name, size in sizes.items():
        bound = np.sqrt(6 / (256 + size))  # uniform in +- this (Glorot & Bengio 2010)
        assert 0.98 * bound < np.abs(flat[name]).max() <= bound
        assert abs(flat[name].std() / (bound / np.sqrt(3)) - 1) < 0.05
    single = network.copy(sub_classes=0)
    shapes = jax.eval_shape(
        lambda key: single.init(key, jnp.zeros((1, 24, 40, 3)), train=False), jax.random.key(0)
    )
    assert {*flatten_dict(shapes["params"], sep="/")} == flat.keys() - {"fc8_sub/kernel"}


def test_features_are_what_the_classifiers_see(narrow):
    config, network, variables, image = narrow
    pool = jax.jit(lambda *given: sccam.pool_features(config, network, *given))
    features = pool(variables, image)
    assert features.shape == (2, 256) and features.dtype == jnp.float32
    x = pixels.scale(jnp.asarray(image), config.model)
    logits, taps = jax.jit(lambda *given: network.apply(*given, train=False))(variables, x)
    for name, expected in (("fc8", logits), ("fc8_sub", taps["sub_logits"])):
        kernel = np.asarray(variables["params"][name]["kernel"], np.float64)[0, 0]
        np.testing.assert_allclose(np.asarray(features, np.float64) @ kernel, expected, rtol=1e-4)


def _resize_by_hand(maps, size):
    """Bilinear with half-pixel centers, (C, h, w) -> (C, *size), as loops over pixels."""
    count, height, width = maps.shape
    out = np.zeros((count, *size))
    for y in range(size[0]):
        row = np.clip((y + 0.5) * height / size[0] - 0.5, 0, height - 1)
        top = int(row)
        low = min(top + 1, height - 1)
        for x in range(size[1]):
            column = np.clip((x + 0.5) * width / size[1] - 0.5, 0, width - 1)
            left = int(column)
            right = min(left + 1, width - 1)
            down, across = row - top, column - left
            upper = maps[:, top, left] * (1 - across) + maps[:, top, right] * across
            lower = maps[:, low, left] * (1 - across) + maps[:, low, right] * across
            out[:, y, x] = upper * (1 - down) + lower * down
    return out


@pytest.mark.parametrize("flip", [True, False])
def test_maps_of_all_scales_by_hand(shallow, flip):
    config, network, variables, image = shallow
    config = config.copy_and_resolve_references()
    config.cam.scales, config.cam.flip = (1.0, 0.5, 1.5), flip
    kernel = np.asarray(variables["params"]["fc8"]["kernel"], np.float64)[0, 0]
    expected = 0.0
    for scale in config.cam.scales:
        for is_mirrored in (False, True)[: 1 + flip]:
            seen = np.asarray(cam.resize_image(jnp.asarray(image), scale))
            assert seen.shape[1:3] == {1: (24, 40), 0.5: (16, 16), 1.5: (32, 64)}[scale]
            seen = seen[:, :, ::-1] if is_mirrored else seen
            x = pixels.scale(jnp.asarray(seen), config.model)
            _, taps = network.apply(variables, x, train=False)
            low = np.maximum(np.einsum("bhwd,dc->bchw", np.float64(taps["bn7"]), kernel), 0)
            maps = np.stack([_resize_by_hand(each, (24, 40)) for each in low])
            expected = expected + (maps[..., ::-1] if is_mirrored else maps)
    found = sccam.add_maps(config, network, variables, jnp.asarray(image))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def _settings(**changed):
    settings = tiny_sccam("unused").cam
    settings.update(changed)
    return settings


MAPS = np.array([[[0, 2], [4, 1]], [[30, 0], [15, 0]], [[0.1, 0.1], [0.1, 0.4]]], np.float32)[None]


@pytest.mark.parametrize(
    ("presence", "background_class", "expected"),
    [
        # Each divided by its maximum: 0 .5 1 .25, 1 0 .5 0, .25 .25 .25 1.
        ((0.9, 0.9, 0.9), -1, [[1, 0], [0, 2]]),
        ((0.9, 0.9, 0.25), -1, [[1, 0], [0, 0]]),  # at the threshold: not predicted
        ((0.1, 0.1, 0.9), -1, [[2, 2], [2, 2]]),
        ((0.1, 0.2, 0.1), -1, [[1, 1], [1, 1]]),  # none is predicted: the most probable
        ((0.9, 0.9, 0.1), 2, [[1, 0], [0, 0]]),  # background has .15 everywhere, predicted or not
        ((0.9, 0.1, 0.1), 2, [[2, 0], [0, 0]]),
        ((0.1, 0.9, 0.9), 0, [[1, 2], [1, 2]]),
    ],
)
def test_label_maps_by_hand(presence, background_class, expected):
    settings = _settings(background_class=background_class)
    found = sccam.make_label_maps(settings, jnp.asarray(MAPS), jnp.asarray([presence]))
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize(
    ("background_class", "expected"),
    [
        # Of the scores 0 .5 1 .25 and 1 0 .5 0, the third class is not predicted.
        (-1, [[0, 1, 2 / 3, 1], [1, 0, 1 / 3, 0], [0, 0, 0, 0]]),
        # The background beside the second class: (1 - 1) ** 4, (1 - 0) ** 4, .5 ** 4, 1.
        (0, [[0, 1, 1 / 9, 1], [1, 0, 8 / 9, 0], [0, 0, 0, 0]]),
    ],
)
def test_shares_for_a_crf_by_hand(background_class, expected):
    config = tiny_sccam("unused")
    config.cam.background_class = background_class
    prediction = Prediction(
        None, presence=jnp.asarray([[0.9, 0.9, 0.1]]), activations=jnp.asarray(MAPS)
    )
    found = sccam.share_activations(config, prediction, (2, 2))
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)
    expected = np.array(expected).reshape(3, 2, 2)
    np.testing.assert_allclose(found[0], np.moveaxis(expected, 0, -1), atol=1e-4)


def test_maps_are_divided_by_their_maximum_and_epsilon():
    found = sccam.normalize_maps(jnp.asarray(np.stack([MAPS[0], 0 * MAPS[0]])), _settings())
    np.testing.assert_allclose(found[0, 0], MAPS[0, 0] / (4 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(found[0, 2], MAPS[0, 2] / (0.4 + 1e-5), rtol=1e-6)
    assert not found[1].any()


def test_prediction_is_made_of_what_it_gives(shallow):
    config, network, variables, image = shallow
    prediction = sccam.predict(config, network, variables, jnp.asarray(image))
    assert prediction.label_maps.shape == (2, 24, 40) and prediction.logits is None
    x = pixels.scale(jnp.asarray(image), config.model)
    logits = np.asarray(network.apply(variables, x, train=False)[0], np.float64)
    np.testing.assert_allclose(prediction.presence, 1 / (1 + np.exp(-logits)), rtol=1e-4)
    labeled = sccam.make_label_maps(config.cam, prediction.activations, prediction.presence)
    np.testing.assert_array_equal(prediction.label_maps, labeled)


def test_views_are_averaged_before_maps_are_divided(shallow):
    """Four views, each of several scales: the mean of their sums, then one division."""
    config, network, variables, image = shallow
    method = load_method("sccam")

    def predict(image):
        return method.predict(config, network, variables, image)

    views = [(), (1,), (2,), (1, 2)]
    maps, presence = 0.0, 0.0
    for axes in views:
        view = predict(jnp.asarray(np.flip(image, axes)))
        maps = maps + np.flip(view.activations, [axis + 1 for axis in axes]) / len(views)
        presence = presence + view.presence / len(views)
    found = average_predictions(
        predict, lambda mean: _label(method, config, mean, image), jnp.asarray(image), "flips"
    )
    assert symmetries.count("flips") == len(views)
    np.testing.assert_allclose(found.activations, maps, rtol=1e-4, atol=1e-4)
    expected = sccam.make_label_maps(config.cam, jnp.asarray(maps), jnp.asarray(presence))
    assert (np.asarray(found.label_maps) != expected).mean() < 0.01  # rounding near ties


def _label(method, config, prediction, image):
    return method.label_activations(config, prediction, image)


def test_masks_are_opened_from_the_normalized_maps(shallow):
    config, network, variables, image = shallow

    def open_layers(image):
        return sccam.open_layers(config, network, variables, image, ("b4_3", "bn7"))

    opened = open_layers(jnp.asarray(image))
    maps = sccam.normalize_maps(
        sccam.add_maps(config, network, variables, jnp.asarray(image)), config.cam
    )
    np.testing.assert_allclose(opened["bn7"] * (24 * 40), maps, rtol=1e-5)
    x = pixels.scale(jnp.asarray(image), config.model)
    gradients, _ = cam.grad_cam(network, variables, x, ("b4_3",))
    np.testing.assert_allclose(opened["b4_3"], gradients["b4_3"], rtol=1e-3, atol=1e-6)
    # Further scales of the job `masks`: each of them has the same weight.
    several = cam.average_scales(open_layers, jnp.asarray(image), (1.0, 2.0))["bn7"]
    twice = open_layers(cam.resize_image(jnp.asarray(image), 2.0))["bn7"] * (48 * 80)
    resized = np.stack([_resize_by_hand(np.asarray(each), (24, 40)) for each in twice])
    np.testing.assert_allclose(several, (maps + resized) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stop_epoch", 3, r"config\.stop_epoch is 3, but config\.epochs is 2"),
        ("cam.scales", (), r"config\.cam\.scales is empty: set --config\.cam\.scales"),
        ("cam.scales", (9.0,), r"config\.cam\.scales is \(9\.0,\)"),
        ("sub_weight", -1.0, r"config\.sub_weight is -1\.0: it must be a number at least 0"),
        ("cam.background_class", -2, r"config\.cam\.background_class is -2"),
    ],
)
def test_impossible_settings_are_refused(field, value, words):
    config = tiny_sccam("unused")
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(InputError, match=words):
        config_lib.validate(config)


def test_a_background_class_that_there_is_not(narrow):
    config = narrow[0].copy_and_resolve_references()
    config.cam.background_class = CLASSES
    with pytest.raises(InputError, match=r"background_class is 3, but there are 3 classes"):
        sccam.build_network(config, CLASSES)


def test_names_of_the_second_classifier_go_there_and_back(narrow):
    _, _, variables, _ = narrow
    state = torch_names.to_torch(variables)
    assert state["fc8_sub.weight"].shape == (CLASSES * PER_CLASS, 256, 1, 1)
    back = flatten_dict(torch_names.to_flax(state))
    for path, value in flatten_dict(variables).items():
        np.testing.assert_array_equal(back[path], value)
