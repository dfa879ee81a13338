"""Phase 1: the patch classifier, ResNet38 with Progressive Dropout Attention."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import cam, masks, optimizers, parallel, pixels, schedules
from wsss_jax import config_rules as rules
from wsss_jax.augmentation import examples
from wsss_jax.errors import InputError
from wsss_jax.methods import arithmetic, classification
from wsss_jax.methods.losses import multilabel_soft_margin
from wsss_jax.methods.prediction import Prediction
from wsss_jax.models.resnet38 import ResNet38
from wsss_jax.training.task import (
    Collapse,
    DeviceBatch,
    LossFunction,
    Task,
    Variables,
    check_whole_batches,
)

TITLE = "phase 1"
GIVES = frozenset({"presence", "activations"})
LAYERS = rules.RESNET38_LAYERS
FIELDS: dict[str, rules.Rule] = {
    **rules.DATA,
    **rules.TRAINING,
    "model.batch_norm": rules.one_of("auto", "frozen", "trained"),
    "model.frozen_blocks": rules.sequence(rules.BLOCK),
    "model.dropout_rates": rules.sequence(rules.number(0, 0.99), 3),
    "pda.schedule": rules.one_of("progressive", "constant", "off"),
    "pda.decay": rules.number(0, 1, open_low=True),
    "pda.floor": rules.number(0, 1, open_low=True),
    "pda.clip": rules.BOOLEAN,
    "pda.hold_epochs": rules.integer(1, rules.MOST_EPOCHS),
    "pda.off_epochs": rules.integer(0, rules.MOST_EPOCHS),
    "pda.constant": rules.number(0, 1, open_low=True),
    "pda.relu": rules.BOOLEAN,
    "pda.divisor": rules.integer(0, 255),
    "pda.normalize": rules.added(rules.BOOLEAN, before=False),
    "pda.warm_up": rules.added(rules.integer(0, rules.MOST_STEPS), before=0),
    "pda.collapse_steps": rules.added(rules.integer(0, rules.MOST_STEPS), before=0),
    "cam.threshold": rules.PROBABILITY,
    "cam.relu": rules.BOOLEAN,
}
MAP_FIELDS = ("cam.threshold", "cam.relu")
_HEAD_MODULES = ("fc8",)
_LOSS_OF_ZEROS = math.log(2)  # of logits that are all 0, whatever the labels
_NEAR_IT = 1e-3  # from there; public logs of dead runs stay at .6931
_MAPS_ABOVE_0 = "maps_above_0"  # share of the class maps of a batch with anything above 0


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses fields that do not go together; see `config.validate`."""
    examples.check(config.augment, prefix)


def complete(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """Decides whether BatchNorm is trained; see `contract.Method.complete`."""
    del dataset
    if config.model.batch_norm == "auto":
        config.model.batch_norm = "frozen" if config.init else "trained"
    if config.model.batch_norm == "frozen" and not config.init:
        raise InputError(
            "config.model.batch_norm is 'frozen' but config.init is empty: statistics of random "
            "weights mean nothing, give --config.init or set --config.model.batch_norm=trained"
        )
    if config.model.batch_norm == "trained":
        check_whole_batches(config.accumulate)


def build_network(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> ResNet38:
    """Builds the classifier; `config.model.batch_norm` is "frozen" or "trained" by then."""
    return ResNet38(
        num_classes=num_classes,
        width=config.model.width,
        frozen_batch_norm=config.model.batch_norm == "frozen",
        dropout_rates=tuple(config.model.dropout_rates),
        attention_relu=config.pda.relu,
        attention_divisor=config.pda.divisor,
        attention_normalize=config.pda.normalize,
        axis_name=axis_name,
        **arithmetic.choose(config),
    )


def make_task(config: ml_collections.ConfigDict, num_classes: int, total_steps: int) -> Task:
    """Says what is trained, and how."""
    network = build_network(config, num_classes, parallel.AXIS)
    optimizer = schedules.scale_learning_rate(config.optimizer, config.batch_size)
    _report_short_run(config, total_steps)
    return Task(
        network=network,
        totals=classification.count_patches,
        loss=make_loss(config, network),
        metrics=("loss", "patch_accuracy"),
        values=make_values(config.pda, total_steps // config.epochs),
        optimizer=optimizers.make_optimizer(optimizer, total_steps, _HEAD_MODULES),
        learning_rate=schedules.learning_rates(optimizer, total_steps)["weight"],
        is_trained=choose_trained(config),
        parts=config.accumulate,
        rematerialize=config.rematerialize,
        prepare=examples.make_move(config.augment, num_classes),
        collapse=make_collapse(config.pda),
        remedies=list_remedies(config.pda),
    )


def choose_trained(config: ml_collections.ConfigDict) -> Callable[[tuple[str, ...]], bool]:
    """Makes the function that tells of the path of a parameter whether it is trained."""
    frozen = tuple(config.model.frozen_blocks) if config.init else ()

    def is_trained(path: tuple[str, ...]) -> bool:
        normalization = path[-1] == "scale" or path[-1] == "bias"
        return path[0] not in frozen and not (normalization and config.model.batch_norm == "frozen")

    return is_trained


def _report_short_run(config: ml_collections.ConfigDict, total_steps: int) -> None:
    """Says so where the attention never comes to its full strength."""
    pda = config.pda
    begin = pda.off_epochs * (total_steps // config.epochs)
    if pda.warm_up and pda.schedule != "off" and total_steps - begin < pda.warm_up:
        tqdm.write(
            f"config.pda.warm_up is {pda.warm_up} steps, but the attention is on for "
            f"{max(total_steps - begin, 0)} only and stays weak: set --config.pda.warm_up lower"
        )


def make_values(
    pda: ml_collections.ConfigDict, steps_per_epoch: int
) -> Callable[[int, int], dict[str, float]]:
    """Makes the function of (epoch, step) that gives the scalars of the loss, see `training.task`.

    They are "mu" and, with `pda.warm_up`, "attention_share".
    """

    def compute(epoch: int, step: int) -> dict[str, float]:
        values = {"mu": schedules.mu(epoch, pda)}
        if pda.warm_up:
            begin = pda.off_epochs * steps_per_epoch
            values["attention_share"] = schedules.attention_share(step - begin, pda.warm_up)
        return values

    return compute


def make_collapse(pda: ml_collections.ConfigDict) -> Collapse | None:
    """Says how the attention collapses; None with `pda.collapse_steps` 0.

    Where no class activation map is above 0 and the maps are clipped there, the attention, all
    features behind it, all logits and all gradients are 0: the loss is ln 2 and stays so. Where
    they are not clipped, the loss may be another one, but the attention, a sum of values below 0,
    turns every sign: all logits are above 0 in training and below 0 in prediction. Before it has
    its full strength such maps are none of its doing: they may say that classes are rare.
    """
    if not pda.collapse_steps:
        return None

    # `normalize_attention` has another answer to maps that are 0 everywhere.
    may_be_below_0 = pda.relu and pda.normalize

    def is_collapsed(
        metrics: Mapping[str, jax.Array], values: Mapping[str, jax.Array]
    ) -> jax.Array:
        is_dead = jnp.abs(metrics["loss"] - _LOSS_OF_ZEROS) < _NEAR_IT
        if not may_be_below_0:
            is_whole = values.get("attention_share", 1.0) >= 1
            is_dead |= (metrics[_MAPS_ABOVE_0] == 0) & is_whole
        return is_dead & (values["mu"] > 0)

    text = (
        f"the attention has collapsed: the loss stays within {_NEAR_IT:g} of ln 2, that of logits "
        "of 0, or no class activation map is above 0,"
    )
    return Collapse(is_collapsed, pda.collapse_steps, text)


def list_remedies(pda: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Lists what the attention offers against both failures and is not switched on."""
    remedies = []
    if not pda.normalize:
        remedies.append("--config.pda.normalize=True")
    if not pda.warm_up:
        remedies.append("--config.pda.warm_up=200")
    return tuple(remedies) if pda.schedule != "off" else ()


def make_loss(config: ml_collections.ConfigDict, network: ResNet38) -> LossFunction:
    """Makes the loss, the multi-label soft margin; see `classification.make_loss`."""

    def compare(
        logits: jax.Array,
        taps: Mapping[str, jax.Array],
        batch: DeviceBatch,
        average: classification.Average,
    ) -> dict[str, jax.Array]:
        is_above = jnp.logical_not(taps["peaks"] <= 0)  # NaN is another failure
        return {
            "loss": average(multilabel_soft_margin(logits, batch["label"])),
            _MAPS_ABOVE_0: average(is_above.mean(axis=-1)),
        }

    return classification.make_loss(config, network, compare, ("mu", "attention_share"))


def predict(
    config: ml_collections.ConfigDict, network: ResNet38, variables: Variables, image: jax.Array
) -> Prediction:
    """Predicts the classes of patches, and their segmentation by the class activation maps.

    Label maps are those of the classes over `config.cam.threshold`; see `contract.Method.predict`.
    """
    logits, taps = network.apply(variables, pixels.scale(image, config.model), train=False)
    presence = jax.nn.sigmoid(logits)
    class_weights = variables["params"]["fc8"]["kernel"][0, 0]
    maps = cam.class_activation_maps(taps["bn7"], class_weights, relu=config.cam.relu)
    label_maps = masks.segmentation(maps, presence, image.shape[1:3], config.cam.threshold)
    return Prediction(label_maps, presence=presence, activations=maps)


def label_activations(
    config: ml_collections.ConfigDict, prediction: Prediction, image: jax.Array
) -> jax.Array:
    """Makes label maps as `predict` does; see `contract.Method.label_activations`."""
    assert prediction.activations is not None and prediction.presence is not None  # see `predict`
    return masks.segmentation(
        prediction.activations, prediction.presence, image.shape[1:3], config.cam.threshold
    )


def share_activations(
    config: ml_collections.ConfigDict, prediction: Prediction, size: Sequence[int]
) -> jax.Array:
    """Shares pixels out among the classes over `config.cam.threshold`; see `contract.Method`."""
    assert prediction.activations is not None and prediction.presence is not None  # see `predict`
    is_predicted = prediction.presence > config.cam.threshold
    return masks.probabilities(prediction.activations, is_predicted, size)


def open_layers(
    config: ml_collections.ConfigDict,
    network: ResNet38,
    variables: Variables,
    image: jax.Array,
    layers: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Computes the Grad-CAM (Eq. 6) of images (B, H, W, 3) uint8 by layer, see `cam.grad_cam`."""
    maps, _ = cam.grad_cam(network, variables, pixels.scale(image, config.model), layers)
    return maps
