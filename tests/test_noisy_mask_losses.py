"""The losses of phase 2 for masks with errors in them: Dice, symmetric cross entropy."""

import json
from functools import partial
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from configs import base
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.methods import losses

CLASSES = 3
CHOICES = [
    {"kind": "symmetric"},
    {"dice": 1.5},
    {"kind": "symmetric", "dice": 0.7},
    {"white": "logit", "white_logit": 5.0, "kind": "symmetric"},
]
EACH_CHOICE = pytest.mark.parametrize("choice", CHOICES, ids=str)


def _settings(choice):
    settings = base.phase2("masks").loss
    settings.update(choice)
    return settings


def _example():
    """Logits, masks of two layers and weights of five examples.

    The last one only fills the batch, the third has no tissue, the fourth one class only.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4, 6, CLASSES)) * 2
    masks = rng.integers(0, CLASSES + 1, (5, 2, 4, 6)).astype(np.uint8)
    masks[2], masks[3] = CLASSES, np.where(masks[3] == CLASSES, CLASSES, 1)
    return logits, masks, np.array([1, 1, 1, 1, 0.0])


# One program, as in training: one operation at a time, compiling takes many times as long.
@partial(jax.jit, static_argnums=0)
def _compute_frozen(settings, logits, masks, weight, pixels):
    weight = jnp.asarray(weight, jnp.float32)
    if pixels is None:
        pixels = losses.count_pixels(masks, weight, CLASSES, settings)
    return losses.layer_losses(logits, masks, weight, pixels, settings)


def _compute(settings, logits, masks, weight, pixels=None):
    return _compute_frozen(config_lib.freeze(settings), logits, masks, weight, pixels)


def _reference(settings, logits, masks, weight):
    """The same in NumPy, pixel by pixel and image by image.

    Returns:
      (L,) float64.
    """
    layers = masks.shape[1]
    sums, pixels = np.zeros(layers), np.zeros(layers)
    for image in np.flatnonzero(weight):
        for layer in range(layers):
            mask = masks[image, layer]
            scores = logits[image]
            if settings.white == "logit":
                extra = settings.white_logit * (masks[image, -1] == CLASSES)[..., None]
                scores = np.concatenate([scores, extra], axis=-1)
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
            sums[layer] += loss.sum()
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
def test_gradients_are_finite_differences(choice):
    settings = _settings(choice)
    logits, *rest = _example()
    differentiate = jax.jit(jax.grad(lambda x: _compute(settings, x, *rest).sum()))
    gradient = np.asarray(differentiate(logits))
    assert np.isfinite(gradient).all() and gradient[:2].any()
    assert not gradient[4].any()  # only fills the batch
    if settings.white == "excluded":
        assert not gradient[2].any()  # has no tissue
    rng = np.random.default_rng(1)
    for _ in range(4):
        direction = rng.normal(size=logits.shape)
        ahead, behind = (
            _reference(settings, logits + step * direction, *rest).sum() for step in (1e-5, -1e-5)
        )
        expected = (ahead - behind) / 2e-5
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@EACH_CHOICE
def test_shares_of_parts_of_the_batch_add_up_to_the_whole(choice):
    settings = _settings(choice)
    logits, masks, weight = _example()
    whole = _compute(settings, logits, masks, weight)
    pixels = losses.count_pixels(jnp.asarray(masks), jnp.asarray(weight), CLASSES, settings)
    shares = [
        _compute(settings, logits[i], masks[i], weight[i], pixels)
        for i in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    np.testing.assert_allclose(sum(shares), whole, rtol=1e-6)


@EACH_CHOICE
def test_examples_that_fill_the_batch_do_not_count(choice):
    settings = _settings(choice)
    logits, masks, weight = _example()
    whole = _compute(settings, logits, masks, weight)
    logits[4], masks[4] = 50, 0
    np.testing.assert_array_equal(_compute(settings, logits, masks, weight), whole)


@EACH_CHOICE
def test_each_layer_has_the_loss_that_it_has_alone(choice):
    settings = _settings(choice)
    logits, masks, weight = _example()
    together = _compute(settings, logits, masks, weight)
    alone = _compute(settings, logits, masks[:, 1:], weight)
    np.testing.assert_allclose(together[1:], alone, rtol=1e-6)


def test_symmetric_cross_entropy_by_hand():
    found = losses.symmetric_cross_entropies(jnp.asarray([log(2.0), 0.0, 200.0]), 0.1, 9.2)
    np.testing.assert_allclose(found, [0.1 * log(2) + 4.6, 0, 20 + 9.2], rtol=1e-6)


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss.white": "logit", "loss.dice": 1.0}, "config.loss.dice is 1 but config.loss.white"),
        (
            {"loss.white": "logit", "augment.affine": 0.5},
            "count as white: set config.loss.white to 'excluded', or config.augment.affine to 0",
        ),
        ({"loss.symmetric_weights": (1.0,)}, "a sequence of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    config = base.phase2("masks")
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
