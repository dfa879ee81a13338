"""The losses of phase 2 for masks with errors in them: weights of pixels, Dice, symmetric."""

import json
from functools import partial
from math import log

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from configs import base
from data import synthetic
from tests.conftest import tiny_phase2
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.methods import losses, phase2
from wsss_jax.models.layers import BatchNorm, Conv, Dropout

CLASSES = 3
CHOICES = [
    {"weighting": "agreement"},
    {"weighting": "confidence"},
    {"weighting": "hardest"},
    {"kind": "symmetric", "dice": 0.7},
    {"white": "logit", "white_logit": 5.0, "kind": "symmetric", "weighting": "agreement"},
]
EACH_CHOICE = pytest.mark.parametrize("choice", CHOICES, ids=str)


def _settings(choice):
    settings = base.phase2("masks").loss
    settings.update(choice)
    return settings


def _example():
    """Logits, masks of two layers, weights and further logits of five examples.

    The last one only fills the batch, the third has no tissue, the fourth one class only.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4, 6, CLASSES)) * 2
    masks = rng.integers(0, CLASSES + 1, (5, 2, 4, 6)).astype(np.uint8)
    masks[2], masks[3] = CLASSES, np.where(masks[3] == CLASSES, CLASSES, 1)
    further = [logits + rng.normal(size=logits.shape) for _ in range(2)]
    return logits, masks, np.array([1, 1, 1, 1, 0.0]), further


def _compute(settings, logits, masks, weight, further, pixels=None):
    masks, weight = jnp.asarray(masks), jnp.asarray(weight, jnp.float32)
    if pixels is None:
        pixels = losses.count_pixels(masks, weight, CLASSES, settings)
    further = [jnp.asarray(x, jnp.float32) for x in further]
    logits = jnp.asarray(logits, jnp.float32)
    return losses.layer_losses(logits, masks, weight, pixels, settings, further)


def _weigh(settings, scores, masks, further):
    """The weights of one image's counted pixels (N,), from logits (N, C) and their masks."""
    ce = -np.take_along_axis(log_softmax(scores, axis=-1), masks[:, None], axis=-1)[:, 0]
    if settings.weighting == "agreement":
        agree = further[0].argmax(axis=-1) == further[1].argmax(axis=-1)
        return np.where(agree, *settings.agreement_weights)
    if settings.weighting == "confidence" and len(set(masks)) > 1:
        weights = softmax(-ce)
        return weights / weights.mean()
    if settings.weighting == "hardest":
        number = max(round(settings.hardest_share * len(ce)), 1)
        weights = np.zeros(len(ce))
        weights[np.argsort(-ce)[:number]] = len(ce) / number
        return weights
    return np.ones(len(ce))


def _reference(settings, logits, masks, weight, further, weights_of=None):
    """The same in NumPy, pixel by pixel and image by image; `weights_of`: logits for the weights.

    Returns:
      (L,) float64.
    """
    layers = masks.shape[1]
    sums, pixels = np.zeros(layers), np.zeros(layers)
    steady = logits if weights_of is None else weights_of
    for image in np.flatnonzero(weight):
        for layer in range(layers):
            mask = masks[image, layer]
            scores, old = logits[image], steady[image]
            if settings.white == "logit":
                extra = settings.white_logit * (masks[image, -1] == CLASSES)[..., None]
                scores, old = (np.concatenate([x, extra], axis=-1) for x in (scores, old))
                counted = np.ones(mask.shape, bool)
            else:
                counted = mask < CLASSES
            pixels[layer] += counted.sum()
            if not counted.any():
                continue
            scores, labels = scores[counted], mask[counted].astype(int)
            p = softmax(scores, axis=-1)[np.arange(len(labels)), labels]
            loss = -np.log(p)
            if settings.kind == "symmetric":
                alpha, reverse = settings.symmetric_weights
                loss = alpha * loss + reverse * (1 - p)
            again = [x[image][counted] for x in further]
            sums[layer] += (loss * _weigh(settings, old[counted], labels, again)).sum()
            probability = softmax(scores, axis=-1)
            dice = [
                2 * probability[labels == c, c].sum() / (probability[:, c] + (labels == c)).sum()
                for c in set(labels)
            ]
            sums[layer] += settings.dice * (1 - np.mean(dice)) * counted.sum()
    return sums / pixels


@EACH_CHOICE
def test_values_are_those_of_numpy(choice):
    settings, example = _settings(choice), _example()
    found = _compute(settings, *example)
    np.testing.assert_allclose(found, _reference(settings, *example), rtol=2e-5)


@EACH_CHOICE
def test_gradients_are_finite_differences_with_the_weights_held(choice):
    settings = _settings(choice)
    logits, *rest = _example()
    gradient = jax.grad(lambda x: _compute(settings, x, *rest).sum())(jnp.asarray(logits))
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all() and gradient[:2].any()
    assert not gradient[4].any()  # only fills the batch
    if settings.white == "excluded":
        assert not gradient[2].any()  # has no tissue
    rng = np.random.default_rng(1)
    for _ in range(4):
        direction = rng.normal(size=logits.shape)
        ahead, behind = (
            _reference(settings, logits + step * direction, *rest, weights_of=logits).sum()
            for step in (1e-5, -1e-5)
        )
        expected = (ahead - behind) / 2e-5
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@EACH_CHOICE
def test_shares_of_parts_of_the_batch_add_up_to_the_whole(choice):
    settings = _settings(choice)
    logits, masks, weight, further = _example()
    whole = _compute(settings, logits, masks, weight, further)
    pixels = losses.count_pixels(jnp.asarray(masks), jnp.asarray(weight), CLASSES, settings)
    shares = [
        _compute(settings, logits[i], masks[i], weight[i], [x[i] for x in further], pixels)
        for i in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    np.testing.assert_allclose(sum(shares), whole, rtol=1e-6)


@EACH_CHOICE
def test_examples_that_fill_the_batch_do_not_count(choice):
    settings = _settings(choice)
    logits, masks, weight, further = _example()
    whole = _compute(settings, logits, masks, weight, further)
    logits[4], masks[4] = 50, 0
    np.testing.assert_array_equal(_compute(settings, logits, masks, weight, further), whole)


@EACH_CHOICE
def test_each_layer_has_the_loss_that_it_has_alone(choice):
    settings = _settings(choice)
    logits, masks, weight, further = _example()
    together = _compute(settings, logits, masks, weight, further)
    alone = _compute(settings, logits, masks[:, 1:], weight, further)
    np.testing.assert_allclose(together[1:], alone, rtol=1e-6)


def test_symmetric_cross_entropy_by_hand():
    found = losses.symmetric_cross_entropies(jnp.asarray([log(2.0), 0.0, 200.0]), 0.1, 9.2)
    np.testing.assert_allclose(found, [0.1 * log(2) + 4.6, 0, 20 + 9.2], rtol=1e-6)


def test_confidence_weights_by_hand():
    probability = jnp.asarray([0.9, 0.6, 0.3, 0.1])[None, None, None]
    counted = jnp.asarray([1.0, 1, 1, 0])[None, None, None]
    masks = jnp.asarray([0, 1, 1, 2], jnp.uint8)[None, None, None]
    found = losses.confidence_weights(-jnp.log(probability), masks, counted)
    np.testing.assert_allclose(found[0, 0, 0], [1.5, 1, 0.5, 0], rtol=1e-6)
    one_class = losses.confidence_weights(-jnp.log(probability), jnp.minimum(masks, 0), counted)
    np.testing.assert_array_equal(one_class, counted)
    # An image that is wrong everywhere: no probability that float32 could hold.
    hopeless = losses.confidence_weights(
        jnp.asarray([200.0, 200, 300, 0])[None, None, None], masks, counted
    )
    np.testing.assert_allclose(hopeless[0, 0, 0], [1.5, 1.5, 0, 0], atol=1e-6)


def test_hardest_weights_by_hand():
    loss = jnp.asarray([5.0, 1, 4, 3, 9, 2])[None, None, None]
    counted = jnp.asarray([1.0, 1, 1, 1, 0, 1])[None, None, None]

    def weigh(share):
        return losses.hardest_weights(loss, counted, share)[0, 0, 0].tolist()

    assert weigh(0.4) == [2.5, 0, 2.5, 0, 0, 0]  # two of five
    assert weigh(0.01) == [5, 0, 0, 0, 0, 0]
    assert weigh(1) == [1, 1, 1, 1, 0, 1]
    equal = losses.hardest_weights(jnp.ones_like(loss), counted, 0.2)
    np.testing.assert_array_equal(equal, counted)


def test_dice_by_hand():
    # One row of four pixels with probabilities 3/4 and 1/4; the last pixel does not count.
    logits = jnp.where(jnp.asarray([[1, 0], [1, 0], [0, 1], [0, 1]]) > 0, log(3.0), 0.0)[None, None]
    masks = jnp.asarray([[[[0, 0, 1, 2]]], [[[0, 0, 0, 2]]]], jnp.uint8)[:, 0][None]
    counted = (masks < 2).astype(jnp.float32)
    found = losses.dice_losses(logits, masks, counted)
    first = 2 * (0.75 + 0.75) / (1.75 + 2)
    second = 2 * 0.75 / (1.25 + 1)
    only = 2 * 1.75 / (1.75 + 3)  # the other class is not there, so it is left out
    np.testing.assert_allclose(found, [[1 - (first + second) / 2, 1 - only]], rtol=1e-6)


def test_agreement_weights_by_hand():
    one = jnp.asarray([[[[1.0, 0], [0, 1], [3, 2]]]])
    other = jnp.asarray([[[[2.0, 1], [1, 0], [0, 2]]]])
    assert losses.agreement_weights(one, other, 2, 0.5).tolist() == [[[[2, 0.5, 0.5]]]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss.weighting": "agreement"}, "no config.model.dropout_rates is above 0"),
        ({"loss.white": "logit", "loss.dice": 1.0}, "config.loss.dice is 1 but config.loss.white"),
        ({"loss.white": "logit", "loss.weighting": "hardest"}, "weighting is 'hardest' but"),
        (
            {"loss.white": "logit", "augment.affine": 0.5},
            "count as white: set config.loss.white to 'excluded', or config.augment.affine to 0",
        ),
        ({"loss.white": "logit", "loss.weighting": "confidence"}, "weighting is 'confidence' but"),
        ({"loss.hardest_share": 0.0}, "a number over 0, at most 1"),
        ({"loss.agreement_weights": (1.0,)}, "a sequence of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    config = base.phase2("masks")
    config.model.dropout_rates = (0.0, 0.0, 0.0)
    config_lib.validate(config)
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError) as caught:
        config_lib.validate(config)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_runs_from_before_these_losses_load(tmp_path):
    config = base.phase2("masks")
    earlier = config.to_dict()
    earlier["loss"] = {
        name: earlier["loss"][name] for name in ("white", "white_logit", "divide_by_batch")
    }
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert config_lib.differences(config_lib.load(tmp_path, "workdir"), config) == []


class _Network(nn.Module):
    """Called as `DeepLabV3Plus` is: a backbone without dropout, and a head with it."""

    @nn.compact
    def __call__(self, x, *, train, weight, position, features=None):
        if features is None:
            features = {"backbone": Conv(8, name="backbone")(x)}
        x = Dropout(0.5)(features["backbone"], deterministic=not train, position=position)
        x = BatchNorm(name="norm")(x, use_running_average=not train, weight=weight)
        return Conv(synthetic.DATASET.num_classes, name="classifier")(x), features


def test_further_passes_change_nothing_but_the_weights():
    """The agreeing and the disagreeing pixels together give loss and statistics of one pass."""
    config, network = tiny_phase2("unused", layers=("bn7",)), _Network()
    config.augment.blur = 0.0  # which takes longer to compile than all the rest
    patches = [synthetic.draw_patch(np.random.default_rng(i), 32) for i in range(2)]
    images, masks = (np.stack(arrays) for arrays in zip(*patches))
    weight, position = np.ones(2, np.float32), np.arange(2, dtype=np.int32)
    batch = {"image": images, "masks": masks[:, None], "weight": weight, "position": position}
    key = jax.random.key(0, impl="rbg")  # compiles faster than the default generator
    variables = jax.jit(partial(network.init, train=False))(
        key, images / 255, weight=weight, position=position
    )

    def compute(weighting, weights=(2.0, 0.5)):
        config.loss.weighting, config.loss.agreement_weights = weighting, weights
        totals = phase2.make_task(config, synthetic.DATASET.num_classes, 1).totals(batch)
        loss_function = phase2.make_loss(config, network)

        @jax.jit
        def differentiate(params):
            def loss(params):
                rest = {**variables, "params": params}
                return loss_function(rest, batch, totals, {}, key)

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, (statistics, _)), gradient = differentiate(variables["params"])
        return float(loss), statistics, gradient

    loss, statistics, gradient = compute("none")
    agreeing, other_statistics, agreeing_gradient = compute("agreement", (1.0, 0.0))
    disagreeing, _, disagreeing_gradient = compute("agreement", (0.0, 1.0))
    assert 0 < agreeing < loss and 0 < disagreeing < loss
    assert agreeing + disagreeing == pytest.approx(loss, rel=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), statistics, other_statistics)
    together = jax.tree.map(jnp.add, agreeing_gradient, disagreeing_gradient)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), together, gradient)
