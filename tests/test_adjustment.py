"""The maps of HistoSegNet against loops over pixels."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base_histosegnet
from wsss_jax.crf import DenseCrf, refine
from wsss_jax.methods import adjustment, histosegnet
from wsss_jax.methods.adjustment import Background
from wsss_jax.methods.prediction import Prediction

CASES = [(0, 2, 4, (12, 15)), (1, 3, 3, (21, 9)), (2, 1, 1, (8, 8)), (3, 2, 6, (5, 30))]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
# As the jobs do: one operation at a time, compiling takes many times as long.
_make_background = jax.jit(adjustment.make_background, static_argnums=2)
_refine = jax.jit(refine, static_argnums=2)


def _label_activations(config, prediction, image):
    label = partial(histosegnet.label_activations, config)
    return np.asarray(jax.jit(label)(prediction, jnp.asarray(image)))


def _mirror(index, side):
    while not 0 <= index < side:
        index = -1 - index if index < 0 else 2 * side - 1 - index
    return index


def _blur(plane, sigma):
    """SciPy's `gaussian_filter` by its definition: 4 sigma, mirrored at the border."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        result = np.zeros_like(plane)
        for target in np.ndindex(plane.shape):
            for offset, share in zip(range(-radius, radius + 1), kernel):
                source = list(target)
                source[axis] = _mirror(target[axis] + offset, plane.shape[axis])
                result[target] += share * plane[tuple(source)]
        plane = result
    return plane


def _background(image, maps, rule):
    gray = image.astype(np.float64).mean(axis=-1)
    white = rule.weight / (1 + np.exp(-np.clip(rule.slope * (gray - rule.level), -700, 700)))
    if rule.sigma:
        white = _blur(white, rule.sigma)
    for index in np.ndindex(white.shape):
        white[index] -= max((maps[c][index] for c in rule.exceptions), default=0)
    return np.clip(white, 0, 1)


def _subtract(maps):
    result = np.zeros_like(maps)
    for y, x in np.ndindex(maps.shape[1:]):
        order = np.argsort(-maps[:, y, x], kind="stable")
        second = maps[order[1], y, x] if len(order) > 1 else 0
        result[order[0], y, x] = maps[order[0], y, x] - second
    return result


@pytest.fixture(params=CASES, ids=str)
def case(request):
    seed, batch, classes, size = request.param
    rng = np.random.default_rng(seed)
    # As bright as the level of the background, more or less
    image = rng.integers(230, 250, (batch, *size, 3)).astype(np.uint8)
    image[:, : size[0] // 2] -= 200
    maps = rng.uniform(size=(batch, classes, *size)).astype(np.float32)
    return rng, image, maps


@pytest.mark.parametrize("sigma", [2.0, 0.7, 0.0])
def test_background(case, sigma):
    _, image, maps = case
    for exceptions in ((), (0,), (maps.shape[1] - 1, 0)):
        rule = Background(0.75, 4.0, 240.0, sigma, exceptions)
        found = _make_background(jnp.asarray(image), maps / 4, rule)
        expected = [_background(*each, rule) for each in zip(image, maps / 4)]
        np.testing.assert_allclose(found[:, 0], expected, **CLOSE)


def test_bright_tissue_is_background_unless_it_is_an_exception():
    image = jnp.full((1, 9, 9, 3), 255, jnp.uint8)
    maps = jnp.zeros((1, 2, 9, 9)).at[:, 1].set(0.5)
    white = _make_background(image, maps, Background())
    np.testing.assert_allclose(white, 0.75, rtol=1e-6)
    white = _make_background(image, maps, Background(exceptions=(1,)))
    np.testing.assert_allclose(white, 0.25, rtol=1e-6)
    dark = _make_background(image // 2, maps, Background())
    np.testing.assert_allclose(dark, 0, atol=1e-6)


def test_subtraction(case):
    _, _, maps = case
    found = jax.jit(adjustment.subtract_classes)(jnp.asarray(maps))
    np.testing.assert_allclose(found, [_subtract(each) for each in maps], **CLOSE)


def test_presence():
    presence = jnp.asarray([[0.9, 0.2, 0.4], [0.1, 0.29, 0.3], [0.0, 0.0, 0.0], [0.5, 0.3, 0.1]])
    found = adjustment.find_present(presence, jnp.asarray([0.5, 0.3, 0.4]))
    expected = [[1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 1, 0]]  # the highest where none is reached
    np.testing.assert_array_equal(found, np.array(expected, bool))


def test_scaled_maps_have_the_probability_as_their_maximum():
    activations = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    activations[0, 1] = -1  # nothing is above 0
    presence = np.array([[0.9, 0.8, 0.1], [0.6, 0.2, 0.7]], np.float32)
    present = presence > 0.5
    maps = np.asarray(adjustment.scale_maps(activations, presence, present, (6, 6)))
    expected = np.where(present, presence, 0)
    expected[0, 1] = 0
    np.testing.assert_allclose(maps.max(axis=(2, 3)), expected, rtol=1e-6)
    positive = np.maximum(activations[1, 2], 0)
    np.testing.assert_allclose(maps[1, 2], positive / positive.max() * 0.7, rtol=1e-5)


def _configure(case):
    rng, _, maps = case
    config = base_histosegnet.histosegnet("")
    config.background.weight = 0.75
    config.cam.thresholds = tuple(rng.uniform(0.3, 0.7, maps.shape[1]).tolist())
    return config


def _find_expected(config, presence, activations, image):
    """Maps (D, H, W), after the subtraction; which of them are possible; strongest tissue."""
    possible = presence >= np.array(config.cam.thresholds, np.float32)
    if not possible.any():
        possible[presence.argmax()] = True
    maps = np.maximum(activations, 0)
    maps = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-7)
    maps = maps * (presence * possible)[:, None, None]
    strongest = np.where(possible[:, None, None], maps, -1).argmax(axis=0)
    if not config.background.weight:
        return _subtract(maps), possible, strongest
    white = _background(image, maps, SimpleNamespace(**config.background.to_dict()))
    return _subtract(np.stack([*maps, white])), np.append(possible, True), strongest


def _predict(case):
    rng, image, maps = case
    presence = rng.uniform(size=maps.shape[:2]).astype(np.float32)
    activations = (maps - 0.4).astype(np.float32)
    given = Prediction(None, presence=jnp.asarray(presence), activations=jnp.asarray(activations))
    return presence, activations, image, given


def test_label_maps_without_crf(case):
    config = _configure(case)
    config.crf.iterations = 0
    presence, activations, image, given = _predict(case)
    found = _label_activations(config, given, image)
    assert found.dtype == np.uint8
    for index in range(len(image)):
        adjusted, _, strongest = _find_expected(
            config, presence[index], activations[index], image[index]
        )
        np.testing.assert_array_equal(found[index], strongest)
        tissue = adjusted[:-1].max(axis=0) > 0  # where not the background wins
        assert tissue.any()
        np.testing.assert_array_equal(found[index][tissue], adjusted[:-1].argmax(axis=0)[tissue])


@pytest.mark.parametrize(
    ("case", "white"),
    [
        *[pytest.param(case, True, id=f"{case}-white") for case in CASES],
        pytest.param(CASES[0], False, id=f"{CASES[0]}"),
        pytest.param(CASES[2], False, id=f"{CASES[2]}"),
        pytest.param(CASES[1], False, id=f"{CASES[1]}", marks=pytest.mark.long),
        pytest.param(CASES[3], False, id=f"{CASES[3]}", marks=pytest.mark.long),
    ],
    indirect=["case"],
)
def test_label_maps_with_crf(case, white):
    """The CRF is tested by itself; here what goes into it and what is made of its result."""
    config = _configure(case)
    if not white:
        config.background.weight = 0.0
    presence, activations, image, given = _predict(case)
    found = _label_activations(config, given, image)
    for index in range(len(image)):
        adjusted, possible, strongest = _find_expected(
            config, presence[index], activations[index], image[index]
        )
        assert len(possible) == len(presence[index]) + white
        unary = -np.log(np.clip(adjusted, 1e-5, 1))
        unary[~possible] = np.inf
        unary = np.moveaxis(unary, 0, -1)[None].astype(np.float32)
        winner = np.asarray(_refine(unary, image[index : index + 1], DenseCrf.of(config.crf)))
        winner = winner[0].argmax(axis=-1)
        expected = np.where(winner < len(presence[index]), winner, strongest)
        assert (found[index] != expected).mean() < 0.01  # rounding, where two are equally likely
        assert possible[found[index]].all()
