"""Phase 2: DeepLabV3+ trained on the masks of several layers."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from data.dataset import Dataset
from wsss_jax import config_rules as rules
from wsss_jax import optimizers, parallel, pixels, schedules
from wsss_jax.augmentation import examples
from wsss_jax.errors import InputError
from wsss_jax.methods import arithmetic
from wsss_jax.methods.losses import count_pixels, layer_losses
from wsss_jax.methods.prediction import Prediction
from wsss_jax.models.deeplab import DeepLabV3Plus
from wsss_jax.training.task import DeviceBatch, LossFunction, Task, Variables, check_whole_batches

TITLE = "phase 2"
GIVES = frozenset({"logits"})
_TWO_WEIGHTS = rules.sequence(rules.number(0, rules.LARGEST), 2)
FIELDS: dict[str, rules.Rule] = {
    **rules.DATA,
    **rules.TRAINING,
    "masks": rules.NAME,
    "layers": rules.sequence(rules.NAME),
    "layer_weights": rules.sequence(rules.number(0, rules.LARGEST)),
    "loss.white": rules.one_of("excluded", "logit"),
    "loss.white_logit": rules.number(0, rules.LARGEST),
    "loss.divide_by_batch": rules.BOOLEAN,
    "loss.kind": rules.added(rules.one_of("cross_entropy", "symmetric"), "cross_entropy"),
    "loss.symmetric_weights": rules.added(_TWO_WEIGHTS, (0.1, 9.2)),
    "loss.dice": rules.added(rules.number(0, rules.LARGEST), 0.0),
    "augment.mosaic": rules.added(rules.PROBABILITY, 0.0),
    "augment.mosaic_split": rules.added(rules.number(0, 0.5), 0.2),
    "augment.paste": rules.added(rules.PROBABILITY, 0.0),
    "augment.paste_radius": rules.added(
        rules.sequence(rules.number(0, 1, open_low=True), 2), (0.15, 0.35)
    ),
    "model.blocks": rules.sequence(rules.integer(1, 100), 4),
    "model.dropout_rates": rules.sequence(rules.number(0, 0.99), 3),
}
_HEAD_MODULES = ("aspp", "decoder")


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses fields that do not go together; see `config.validate`."""
    if len(config.layers) != len(config.layer_weights):
        raise InputError(
            f"{prefix}layer_weights has {len(config.layer_weights)} entries for the "
            f"{len(config.layers)} of {prefix}layers: give one weight for each layer"
        )
    if not config.layers:
        raise InputError(f"{prefix}layers is empty: name at least one layer")
    loss = config.loss
    if loss.white == "logit" and loss.dice:
        raise InputError(
            f"{prefix}loss.dice is {loss.dice:g} but {prefix}loss.white is 'logit', and white "
            "pixels, of which the network learns nothing, would count in it: set "
            f"{prefix}loss.white to 'excluded'"
        )
    if loss.white == "logit" and config.augment.affine:
        raise InputError(
            f"{prefix}augment.affine is {config.augment.affine:g} but {prefix}loss.white is "
            "'logit', and what is turned in from outside of a patch, which has no label, would "
            f"count as white: set {prefix}loss.white to 'excluded', or {prefix}augment.affine to 0"
        )
    examples.check(config.augment, prefix)


def complete(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """Sees that BatchNorm gets whole batches; see `contract.Method.complete`."""
    del dataset
    check_whole_batches(config.accumulate)


def build_network(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> DeepLabV3Plus:
    """Builds the segmentation network."""
    return DeepLabV3Plus(
        num_classes=num_classes,
        width=config.model.width,
        blocks=tuple(config.model.blocks),
        dropout_rates=tuple(config.model.dropout_rates),
        axis_name=axis_name,
        **arithmetic.choose(config),
    )


def make_task(config: ml_collections.ConfigDict, num_classes: int, total_steps: int) -> Task:
    """Says what is trained, and how."""
    network = build_network(config, num_classes, parallel.AXIS)
    optimizer = schedules.scale_learning_rate(config.optimizer, config.batch_size)

    def count(batch: DeviceBatch) -> dict[str, jax.Array]:
        """Returns what the losses are divided by: "pixels" (L,) and "patches" () float32."""
        masks, weight = batch["masks"], batch["weight"]
        return {
            "pixels": count_pixels(masks, weight, num_classes, config.loss),
            "patches": weight.sum(),
        }

    return Task(
        network=network,
        totals=count,
        loss=make_loss(config, network),
        metrics=("loss", *(f"loss_{layer}" for layer in config.layers)),
        values=lambda epoch, step: {},
        optimizer=optimizers.make_optimizer(optimizer, total_steps, _HEAD_MODULES),
        learning_rate=schedules.learning_rates(optimizer, total_steps)["weight"],
        is_trained=lambda path: True,
        parts=config.accumulate,
        rematerialize=config.rematerialize,
        prepare=examples.make_move(config.augment, num_classes),
    )


def make_loss(config: ml_collections.ConfigDict, network: DeepLabV3Plus) -> LossFunction:
    """Makes the multi-layer loss (Eq. 13): a share of its mean, see `training.task`."""

    def loss_function(
        variables: Variables,
        batch: DeviceBatch,
        totals: Mapping[str, jax.Array],
        values: Mapping[str, jax.Array],
        rng: jax.Array,
    ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
        del values  # phase 2 has no schedule but the learning rate
        augment_rng, dropout_rng = jax.random.split(rng)
        weight, position = batch["weight"], batch["position"]
        image, masks = examples.augment(
            augment_rng, batch["image"], batch["masks"], config.augment, position
        )
        assert masks is not None  # as they were given
        (logits, _), updated = network.apply(
            variables,
            pixels.scale(image, config.model),
            train=True,
            weight=weight,
            position=position,
            rngs={"dropout": dropout_rng},
            mutable=["batch_stats"],
        )
        losses = layer_losses(logits, masks, weight, totals["pixels"], config.loss)
        if config.loss.divide_by_batch:
            losses = losses / totals["patches"]
        weights = jnp.asarray(config.layer_weights, losses.dtype)
        loss = jnp.dot(losses, weights, precision=jax.lax.Precision.HIGHEST)
        by_layer = {f"loss_{name}": losses[i] for i, name in enumerate(config.layers)}
        return loss, (updated["batch_stats"], {"loss": loss, **by_layer})

    return loss_function


def predict(
    config: ml_collections.ConfigDict,
    network: DeepLabV3Plus,
    variables: Variables,
    image: jax.Array,
) -> Prediction:
    """Predicts the class of each pixel, without gate; see `contract.Method.predict`."""
    logits, _ = network.apply(variables, pixels.scale(image, config.model), train=False)
    return Prediction(logits.argmax(axis=-1).astype(jnp.uint8), logits=logits)
