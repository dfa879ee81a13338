"""Phase 1: the patch classifier, ResNet38 with Progressive Dropout Attention."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from wsss_jax import cam, inputs, masks, metrics, parallel, pixels, schedules, sources, training
from wsss_jax.models.resnet38 import ResNet38

HEAD_MODULES = ("fc8",)


def build_model(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> ResNet38:
    """The classifier of a phase 1 configuration.

    Args:
      config: with `model.batch_norm` "frozen" or "trained".
      num_classes: C.
      axis_name: the mapped axis in training, None for prediction.
    """
    return ResNet38(
        num_classes=num_classes,
        width=config.model.width,
        frozen_batch_norm=config.model.batch_norm == "frozen",
        dropout_rates=tuple(config.model.dropout_rates),
        attention_relu=config.pda.relu,
        attention_divisor=config.pda.divisor,
        dtype=jnp.dtype(config.precision),
        axis_name=axis_name,
    )


def multilabel_soft_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Loss of each patch: binary cross entropy of logits (B, C) with labels (B, C), mean over C."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)


def loss_function(
    config: ml_collections.ConfigDict,
    model: ResNet38,
    variables: training.Variables,
    batch: sources.Batch,
    totals: Mapping[str, jax.Array],
    values: Mapping[str, jax.Array],
    rng: jax.Array,
) -> tuple[jax.Array, tuple[training.Variables, dict[str, jax.Array]]]:
    """A share of the mean loss over the global batch; see `training.LossFunction`.

    `values["mu"]` is the coefficient of the attention.
    """
    augment_rng, dropout_rng = jax.random.split(rng)
    weight, position = batch["weight"], batch["position"]
    image, _ = pixels.augment(augment_rng, batch["image"], None, config.augment, position)
    (logits, _), updated = model.apply(
        variables,
        pixels.scale(image, config.model),
        train=True,
        mu=values["mu"],
        weight=weight,
        position=position,
        rngs={"dropout": dropout_rng},
        mutable=["batch_stats"],
    )
    labels = batch["label"].astype(jnp.float32)
    loss = (multilabel_soft_margin(logits, labels) * weight).sum() / totals["patches"]
    right = ((logits > 0) == (labels > 0)).mean(axis=-1)
    accuracy = (right * weight).sum() / totals["patches"]
    batch_stats = updated.get("batch_stats", variables["batch_stats"])
    return loss, (batch_stats, {"loss": loss, "patch_accuracy": accuracy})


def totals(batch: sources.Batch) -> dict[str, jax.Array]:
    """What the losses of a batch are divided by: the number of its "patches", () float32."""
    return {"patches": batch["weight"].sum()}


def predict(
    config: ml_collections.ConfigDict,
    model: ResNet38,
    variables: training.Variables,
    image: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Probabilities and the segmentation that phase 1 gives by itself.

    Args:
      config: of phase 1.
      model: without axis.
      variables: its parameters.
      image: (B, H, W, 3) uint8.

    Returns:
      probabilities (B, C) float32 and label maps (B, H, W) uint8, by the class activation maps of
      the classes over `config.cam.threshold`.
    """
    logits, taps = model.apply(variables, pixels.scale(image, config.model), train=False)
    probability = jax.nn.sigmoid(logits)
    class_weights = variables["params"]["fc8"]["kernel"][0, 0]
    maps = cam.class_activation_maps(taps["bn7"], class_weights, relu=config.cam.relu)
    return probability, masks.segmentation(
        maps, probability, image.shape[1:3], config.cam.threshold
    )


def validator(
    config: ml_collections.ConfigDict, num_classes: int, source: sources.Source
) -> training.Validate:
    """The classifier's figures and, where there are true masks, the IoU of its activation maps."""
    model = build_model(config, num_classes)

    def score(variables: training.Variables, batch: sources.Batch) -> dict[str, jax.Array]:
        probability, prediction = predict(config, model, variables, batch["image"])
        scores = {"probability": probability}
        if "masks" in batch:
            truth = batch["masks"][:, 0]
            scores["confusion"] = metrics.confusion_matrices(truth, prediction, num_classes)
        return scores

    mapped = parallel.map_batch(score)

    def validate(variables: training.Variables) -> dict[str, Any]:
        whole = inputs.map_patches(
            source,
            config.batch_size,
            lambda batch: {**mapped(variables, batch), "label": batch["label"]},
        )
        scores = metrics.multilabel_scores(whole["probability"], whole["label"])
        scores = {f"val_{name}": value for name, value in scores.items()}
        if "confusion" in whole:
            confusion = whole["confusion"].sum(axis=0, dtype=np.int64)
            scores |= metrics.segmentation_scores(confusion)
        return scores

    return validate


def phase(
    config: ml_collections.ConfigDict,
    num_classes: int,
    total_steps: int,
    validation: sources.Source | None,
) -> training.Phase:
    """What the training loop needs of phase 1; `config.model.batch_norm` is settled by then."""
    model = build_model(config, num_classes, parallel.AXIS)
    frozen = tuple(config.model.frozen_blocks) if config.init else ()
    optimizer = schedules.scale_learning_rate(config.optimizer, config.batch_size)
    rates = schedules.learning_rates(optimizer, total_steps)

    def is_trainable(path: tuple[str, ...]) -> bool:
        normalization = path[-1] == "scale" or path[-1] == "bias"
        return path[0] not in frozen and not (normalization and config.model.batch_norm == "frozen")

    return training.Phase(
        model=model,
        totals=totals,
        loss=partial(loss_function, config, model),
        optimizer=schedules.sgd(optimizer, total_steps, HEAD_MODULES),
        learning_rate=rates["weight"],
        is_trainable=is_trainable,
        parts=config.accumulate,
        rematerialize=config.rematerialize,
        metrics=("loss", "patch_accuracy"),
        values=lambda epoch: {"mu": schedules.mu(epoch, config.pda)},
        validate=None if validation is None else validator(config, num_classes, validation),
    )


def load(workdir: str, field: str, precision: str = "") -> training.Trained:
    """The classifier of the run that the configuration names in `field`; see `training.load`."""
    return training.load(workdir, field, "phase1", build_model, precision)
