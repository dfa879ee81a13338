from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from wsss_jax import config as config_lib
from wsss_jax.methods.gate import Gate
from wsss_jax.methods.losses import count_pixels, layer_losses


def _example(classes=3, layers=2, size=6, batch=3):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(batch, size, size, classes)).astype(np.float32) * 3
    masks = rng.integers(0, classes + 1, (batch, layers, size, size)).astype(np.uint8)
    masks[:, 0] = np.where(masks[:, -1] == classes, classes, masks[:, 0])
    return logits, masks


# One program, as in training: one operation at a time, compiling takes many times as long.
@partial(jax.jit, static_argnums=0)
def _compute(settings, logits, masks, weight):
    pixels = count_pixels(masks, weight, logits.shape[-1], settings)
    return layer_losses(logits, masks, weight, pixels, settings)


def _losses(logits, masks, weight, white_logit=None):
    settings = base.phase2("masks").loss
    if white_logit is not None:
        settings.white, settings.white_logit = "logit", white_logit
    return _compute(config_lib.freeze(settings), logits, masks, weight)


def _cross_entropy(logits, target):
    log_probability = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_probability, target[..., None].astype(int), axis=-1)[..., 0]


def test_excluded_pixels_and_filling_take_no_part():
    logits, masks = _example()
    weight = np.float32([1, 1, 0])
    losses = _losses(logits, masks, weight)
    for loss, mask in zip(losses, masks[:2].swapaxes(0, 1)):
        tissue = mask < 3
        expected = _cross_entropy(logits[:2], np.minimum(mask, 2))[tissue].mean()
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_white_as_a_further_logit():
    logits, masks = _example()
    further = np.where(masks[:, -1] == 3, 100.0, 0.0)[..., None]
    wide = np.concatenate([logits, further], axis=-1)
    losses = _losses(logits, masks, np.ones(3, np.float32), 100.0)
    for loss, mask in zip(losses, masks.swapaxes(0, 1)):
        assert float(loss) == pytest.approx(_cross_entropy(wide, mask).mean(), rel=1e-4)


def test_a_mask_without_tissue_gives_no_loss():
    logits, masks = _example()
    losses = _losses(logits, np.full_like(masks, 3), np.ones(3, np.float32))
    assert losses.tolist() == [0, 0]


def test_gate_closes_classes():
    logits = jnp.asarray([[[[3.0, 2.0, -1.0]]]])
    closed_first = jnp.asarray([[0.05, 0.9, 0.9]])

    def gate(probability, mode):
        return int(Gate(mode, 0.1).segment(logits, probability)[0, 0, 0])

    assert gate(closed_first, "off") == 0
    assert gate(closed_first, "probabilities") == 1
    assert gate(jnp.asarray([[0.1, 0.1, 0.9]]), "probabilities") == 2
    # The released code sets the logit to 0, which still beats the open -1.
    assert gate(jnp.asarray([[0.1, 0.1, 0.9]]), "logits") == 0
    assert gate(jnp.asarray([[0.0, 0.0, 0.0]]), "probabilities") == 0


def test_gate_on_probabilities_is_equation_14():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 4, 4, 3)), jnp.float32)
    probability = jnp.asarray(
        [[0.5, 0.05, 0.2], [0.0, 0.05, 0.2], [1, 1, 1], [0.11, 0.1, 0], [0, 1, 0]]
    )
    maps = jax.nn.softmax(logits) * (probability > 0.1)[:, None, None, :]
    gated = Gate("probabilities", 0.1).segment(logits, probability)
    np.testing.assert_array_equal(gated, maps.argmax(axis=-1))


@pytest.mark.parametrize("mode", ["probabilities", "logits", "off"])
def test_gated_probabilities_have_the_strongest_class_of_the_gate(mode):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(40, 8, 8, 3)) * 3, jnp.float32)
    # A closed class so much stronger that the others' probabilities are 0 in float32.
    logits = logits.at[0, :, :, 0].set(200)
    probability = jnp.asarray(rng.uniform(size=(40, 3)) ** 4)
    probability = probability.at[0].set(jnp.asarray([0, 1, 1])).at[1].set(0)
    gate = Gate(mode, 0.1)
    probabilities = gate.probabilities(logits, probability)
    labels = gate.segment(logits, probability)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), labels)
    if mode == "probabilities":
        is_open = (probability > 0.1) | ~(probability > 0.1).any(axis=-1, keepdims=True)
        expected = jax.nn.softmax(logits) * is_open[:, None, None, :]
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-25)
