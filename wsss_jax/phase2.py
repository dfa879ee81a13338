"""Phase 2: DeepLabV3+ trained on the masks of several layers, and the classification gate."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from wsss_jax import inputs, metrics, parallel, pixels, schedules, sources, training
from wsss_jax.errors import InputError
from wsss_jax.models.deeplab import DeepLabV3Plus

HEAD_MODULES = ("aspp", "decoder")


def build_model(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> DeepLabV3Plus:
    """The segmentation network of a phase 2 configuration; `axis_name` in training only."""
    return DeepLabV3Plus(
        num_classes=num_classes,
        width=config.model.width,
        blocks=tuple(config.model.blocks),
        dropout_rates=tuple(config.model.dropout_rates),
        dtype=jnp.dtype(config.precision),
        axis_name=axis_name,
    )


def layer_losses(
    logits: jax.Array,
    masks: jax.Array,
    weight: jax.Array,
    *,
    pixels: jax.Array,
    white: str,
    white_logit: float,
) -> jax.Array:
    """Cross entropy with the mask of each layer, mean over the pixels of the global batch.

    Args:
      logits: (B, H, W, C) float32.
      masks: (B, L, H, W) uint8, class indices and C for white or excluded.
      weight: (B,), 0 for examples that only fill the batch.
      pixels: (L,) counted in the global batch, of `counted_pixels`.
      white: "excluded" leaves pixels with C out; "logit" counts them, with a further logit that
        is `white_logit` where the last layer's mask is C and 0 elsewhere (released code).
      white_logit: see `white`.

    Returns:
      (L,) float32: of a part of the global batch its shares, which add up to the mean.
    """
    num_classes = logits.shape[-1]
    counted = _counted(masks, weight, num_classes, white)
    masks = masks.astype(jnp.int32)
    if white == "logit":
        further = jnp.where(masks[:, -1] == num_classes, white_logit, 0.0)
        logits = jnp.concatenate([logits, further[..., None]], axis=-1)
    else:
        masks = jnp.minimum(masks, num_classes - 1)
    log_probability = jax.nn.log_softmax(logits)[:, None]
    cross_entropy = -jnp.take_along_axis(log_probability, masks[..., None], axis=-1)[..., 0]
    return (cross_entropy * counted).sum(axis=(0, 2, 3)) / jnp.maximum(pixels, 1)


def _counted(masks: jax.Array, weight: jax.Array, num_classes: int, white: str) -> jax.Array:
    """(B, L, H, W): 1 for every pixel of the masks that the loss counts, else 0."""
    counted = jnp.broadcast_to(weight[:, None, None, None], masks.shape)
    return counted if white == "logit" else counted * (masks < num_classes)


def totals(batch: sources.Batch, *, num_classes: int, white: str) -> dict[str, jax.Array]:
    """What the losses of a batch are divided by: "pixels" (L,) and "patches" () float32."""
    counted = _counted(batch["masks"], batch["weight"], num_classes, white)
    return {"pixels": counted.sum(axis=(0, 2, 3)), "patches": batch["weight"].sum()}


def loss_function(
    config: ml_collections.ConfigDict,
    model: DeepLabV3Plus,
    variables: training.Variables,
    batch: sources.Batch,
    totals: Mapping[str, jax.Array],
    values: Mapping[str, jax.Array],
    rng: jax.Array,
) -> tuple[jax.Array, tuple[training.Variables, dict[str, jax.Array]]]:
    """A share of the multi-layer loss (Eq. 13); see `training.LossFunction`."""
    del values  # phase 2 has no schedule but the learning rate
    augment_rng, dropout_rng = jax.random.split(rng)
    weight, position = batch["weight"], batch["position"]
    image, masks = pixels.augment(
        augment_rng, batch["image"], batch["masks"], config.augment, position
    )
    (logits, _), updated = model.apply(
        variables,
        pixels.scale(image, config.model),
        train=True,
        weight=weight,
        position=position,
        rngs={"dropout": dropout_rng},
        mutable=["batch_stats"],
    )
    losses = layer_losses(
        logits,
        masks,
        weight,
        pixels=totals["pixels"],
        white=config.loss.white,
        white_logit=config.loss.white_logit,
    )
    if config.loss.divide_by_batch:
        losses = losses / totals["patches"]
    loss = losses @ jnp.asarray(config.layer_weights, losses.dtype)
    by_layer = {f"loss_{name}": losses[i] for i, name in enumerate(config.layers)}
    return loss, (updated["batch_stats"], {"loss": loss, **by_layer})


def predict(
    config: ml_collections.ConfigDict,
    model: DeepLabV3Plus,
    variables: training.Variables,
    image: jax.Array,
) -> jax.Array:
    """Logits (B, H, W, C) float32 of images (B, H, W, 3) uint8; `config` is that of phase 2."""
    return model.apply(variables, pixels.scale(image, config.model), train=False)[0]


def gate(logits: jax.Array, probability: jax.Array, *, mode: str, threshold: float) -> jax.Array:
    """The classification gate (Eq. 14): closes classes that phase 1 does not see in the patch.

    Args:
      logits: (B, H, W, C) of phase 2.
      probability: (B, C) of phase 1.
      mode: "probabilities" sets the probability maps of closed classes to 0 (paper), "logits" their
        logits, which then still beat negative ones (released code), "off" leaves all open.
      threshold: a class is closed at or under it. Where that closes every class, the gate says
        nothing: in the mode "probabilities" all stay open.

    Returns:
      (B, H, W) uint8: the strongest class.
    """
    gated = _gated_logits(logits, probability, mode, threshold)
    return gated.argmax(axis=-1).astype(jnp.uint8)


def gated_probabilities(
    logits: jax.Array, probability: jax.Array, *, mode: str, threshold: float
) -> jax.Array:
    """The probability maps behind the gate, whose strongest class is that of `gate`.

    Takes what `gate` takes. In the mode "probabilities" those of closed classes are 0 and the
    others as they were, not scaled to a sum of 1.

    Returns:
      (B, H, W, C) float32.
    """
    gated = _gated_logits(logits, probability, mode, threshold)
    probabilities = jax.nn.softmax(gated)
    if mode == "probabilities":
        everything, left = (jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in (logits, gated))
        # So much of the probability is that of open classes; never 0, or none of them would win.
        probabilities = probabilities * jnp.maximum(jnp.exp(left - everything), 1e-30)
    return probabilities


def _gated_logits(
    logits: jax.Array, probability: jax.Array, mode: str, threshold: float
) -> jax.Array:
    is_open = probability > threshold
    if mode == "logits":
        return logits * is_open[:, None, None, :]
    if mode == "probabilities":
        is_open = is_open | ~is_open.any(axis=-1, keepdims=True)
        # Softmax is increasing: the strongest probability of the open classes is their strongest
        # logit.
        return jnp.where(is_open[:, None, None, :], logits, -jnp.inf)
    return logits


def validator(
    config: ml_collections.ConfigDict, num_classes: int, source: sources.Source
) -> training.Validate:
    """IoU over the validation patches, without gate.

    Raises:
      InputError: they have no true masks.
    """
    if "masks" not in source[0]:
        raise InputError(
            f"{config.data.root}: the validation patches have no masks, which phase 2 needs to "
            "choose its checkpoint: add val/mask, or remove val and set --config.select=last"
        )
    model = build_model(config, num_classes)

    def count(variables: training.Variables, batch: sources.Batch) -> jax.Array:
        prediction = predict(config, model, variables, batch["image"]).argmax(axis=-1)
        return metrics.confusion_matrices(batch["masks"][:, 0], prediction, num_classes)

    mapped = parallel.map_batch(count)

    def validate(variables: training.Variables) -> dict[str, Any]:
        found = inputs.map_patches(
            source, config.batch_size, lambda batch: {"confusion": mapped(variables, batch)}
        )
        return metrics.segmentation_scores(found["confusion"].sum(axis=0, dtype=np.int64))

    return validate


def phase(
    config: ml_collections.ConfigDict,
    num_classes: int,
    total_steps: int,
    validation: sources.Source | None,
) -> training.Phase:
    """What the training loop needs of phase 2."""
    model = build_model(config, num_classes, parallel.AXIS)
    optimizer = schedules.scale_learning_rate(config.optimizer, config.batch_size)
    rates = schedules.learning_rates(optimizer, total_steps)

    return training.Phase(
        model=model,
        totals=partial(totals, num_classes=num_classes, white=config.loss.white),
        loss=partial(loss_function, config, model),
        optimizer=schedules.sgd(optimizer, total_steps, HEAD_MODULES),
        learning_rate=rates["weight"],
        is_trainable=lambda path: True,
        parts=config.accumulate,
        rematerialize=config.rematerialize,
        metrics=("loss", *(f"loss_{layer}" for layer in config.layers)),
        values=lambda epoch: {},
        validate=None if validation is None else validator(config, num_classes, validation),
    )


def load(workdir: str, field: str, precision: str = "") -> training.Trained:
    """The network of the run that the configuration names in `field`; see `training.load`."""
    return training.load(workdir, field, "phase2", build_model, precision)
