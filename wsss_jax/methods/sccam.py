"""SC-CAM: a classifier that also learns sub-categories found by clustering its own features.

Chang et al., CVPR 2020, "Weakly-Supervised Semantic Segmentation via Sub-category Exploration". The
network is that of phase 1 without attention, with a second classifier: k sub-categories of each
class. Round 0 trains the classes alone. Each further round starts from the first weights again and
learns the clusters that the job `cluster` has found in the features of the round before, too.
Segmentations are class activation maps of the classes; the sub-categories only teach the features.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data.dataset import Dataset
from wsss_jax import cam, masks, optimizers, parallel, pixels, schedules
from wsss_jax import config_rules as rules
from wsss_jax.augmentation import examples
from wsss_jax.errors import InputError
from wsss_jax.methods import arithmetic, classification, phase1
from wsss_jax.methods.losses import multilabel_soft_margin
from wsss_jax.methods.prediction import Prediction
from wsss_jax.models.layers import accumulator
from wsss_jax.models.resnet38 import ResNet38
from wsss_jax.training.task import DeviceBatch, LossFunction, Task, Variables

TITLE = "SC-CAM"
GIVES = frozenset({"presence", "activations", "features"})
LAYERS = phase1.LAYERS
WEIGHTS = "phase1"
FIELDS: dict[str, rules.Rule] = {
    **rules.DATA,
    **rules.TRAINING,
    "clusters": rules.TEXT,
    "stop_epoch": rules.integer(0, rules.MOST_EPOCHS),
    "sub_weight": rules.number(0, rules.LARGEST),
    "model.batch_norm": rules.one_of("auto", "frozen", "trained"),
    "model.frozen_blocks": rules.sequence(rules.BLOCK),
    "model.dropout_rates": rules.sequence(rules.number(0, 0.99), 3),
    "model.sub_categories": rules.integer(0, 4096),
    "cam.threshold": rules.PROBABILITY,
    "cam.scales": rules.sequence(rules.number(0.25, 4)),
    "cam.flip": rules.BOOLEAN,
    "cam.epsilon": rules.number(0, 1, open_low=True),
    "cam.background": rules.number(0, 1),
    "cam.background_power": rules.number(0, 1000, open_low=True),
    "cam.background_class": rules.integer(-1, 254),
}
MAP_FIELDS = tuple(name for name in FIELDS if name.startswith("cam."))
# Which classes are predicted, and how the CRF begins, has no part in what masks are made of.
ACTIVATION_FIELDS = tuple(
    name for name in MAP_FIELDS if name not in ("cam.threshold", "cam.background_power")
)
_HEAD_MODULES = ("fc8", "fc8_sub")
_PLAIN_LAYER = "bn7"  # whose maps are those of SC-CAM; the others give Grad-CAM


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses fields that do not go together; see `config.validate`."""
    examples.check(config.augment, prefix)
    if not config.cam.scales:
        raise InputError(f'{prefix}cam.scales is empty: set --{prefix}cam.scales="(1.0,)"')
    if config.stop_epoch > config.epochs:
        raise InputError(
            f"{prefix}stop_epoch is {config.stop_epoch}, but {prefix}epochs is {config.epochs}: "
            "set it to at most that, or to 0 to train all of them"
        )


def complete(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """Decides whether BatchNorm is trained; see `contract.Method.complete`."""
    phase1.complete(config, dataset)
    if config.model.sub_categories and not config.clusters:
        raise InputError(
            f"config.model.sub_categories is {config.model.sub_categories}, but config.clusters is "
            "empty: set --config.model.sub_categories=0 to learn the classes alone, or name the "
            "clusters, which say how many there are"
        )


def build_network(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> ResNet38:
    """Builds the classifier, with the second one if there are sub-categories.

    Raises:
      InputError: the data set has no class of the index `config.cam.background_class`.
    """
    if config.cam.background_class >= num_classes:
        raise InputError(
            f"config.cam.background_class is {config.cam.background_class}, but there are "
            f"{num_classes} classes, counted from 0: name one of them, or set "
            "--config.cam.background_class=-1 for none"
        )
    return ResNet38(
        num_classes=num_classes,
        width=config.model.width,
        frozen_batch_norm=config.model.batch_norm == "frozen",
        dropout_rates=tuple(config.model.dropout_rates),
        sub_classes=num_classes * config.model.sub_categories,
        head_initializer=nn.initializers.xavier_uniform(),
        axis_name=axis_name,
        **arithmetic.choose(config),
    )


def make_task(config: ml_collections.ConfigDict, num_classes: int, total_steps: int) -> Task:
    """Says what is trained, and how; `total_steps` are of the whole schedule, without a stop."""
    network = build_network(config, num_classes, parallel.AXIS)
    optimizer = schedules.scale_learning_rate(config.optimizer, config.batch_size)
    parts = ("class_loss", "sub_loss") if config.model.sub_categories else ()
    return Task(
        network=network,
        totals=classification.count_patches,
        loss=make_loss(config, network),
        metrics=("loss", *parts, "patch_accuracy"),
        values=lambda epoch, step: {},
        optimizer=optimizers.make_optimizer(optimizer, total_steps, _HEAD_MODULES),
        learning_rate=schedules.learning_rates(optimizer, total_steps)["weight"],
        is_trained=phase1.choose_trained(config),
        parts=config.accumulate,
        rematerialize=config.rematerialize,
        prepare=examples.make_move(config.augment, num_classes),
    )


def make_loss(config: ml_collections.ConfigDict, network: ResNet38) -> LossFunction:
    """Makes the loss: that of the classes + `config.sub_weight` x that of the sub-categories.

    Both are multi-label soft margins, means over their labels. A batch then has "sub_label"
    (B, C * k), k labels for each class; see `clusters.extend`, and `classification.make_loss`.
    """

    def compare(
        logits: jax.Array,
        taps: Mapping[str, jax.Array],
        batch: DeviceBatch,
        average: classification.Average,
    ) -> dict[str, jax.Array]:
        loss = average(multilabel_soft_margin(logits, batch["label"]))
        if not config.model.sub_categories:
            return {"loss": loss}
        sub_loss = average(multilabel_soft_margin(taps["sub_logits"], batch["sub_label"]))
        total = loss + config.sub_weight * sub_loss
        return {"loss": total, "class_loss": loss, "sub_loss": sub_loss}

    return classification.make_loss(config, network, compare)


def predict(
    config: ml_collections.ConfigDict, network: ResNet38, variables: Variables, image: jax.Array
) -> Prediction:
    """Predicts the classes of patches, and their segmentation by the class activation maps.

    Classes are predicted from the image at its own size; see `contract.Method.predict`.
    """
    logits, _ = network.apply(variables, pixels.scale(image, config.model), train=False)
    presence, maps = jax.nn.sigmoid(logits), add_maps(config, network, variables, image)
    label_maps = make_label_maps(config.cam, maps, presence)
    return Prediction(label_maps, presence=presence, activations=maps)


def label_activations(
    config: ml_collections.ConfigDict, prediction: Prediction, image: jax.Array
) -> jax.Array:
    """Makes label maps as `predict` does; see `contract.Method.label_activations`."""
    assert prediction.activations is not None and prediction.presence is not None  # see `predict`
    return make_label_maps(config.cam, prediction.activations, prediction.presence)


def add_maps(
    config: ml_collections.ConfigDict, network: ResNet38, variables: Variables, image: jax.Array
) -> jax.Array:
    """Adds up the class activation maps of all `config.cam.scales` and of their mirror images.

    Of each, negative values are 0; then it is resized bilinearly (half-pixel centers) and mirrored
    back.

    Args:
      config: of the method.
      network: for prediction.
      variables: of it.
      image: (B, H, W, 3) uint8.

    Returns:
      (B, C, H, W) float32, at least 0.
    """
    class_weights = variables["params"]["fc8"]["kernel"][0, 0]

    def compute(image: jax.Array) -> jax.Array:
        _, taps = network.apply(variables, pixels.scale(image, config.model), train=False)
        features = taps[_PLAIN_LAYER].astype(accumulator(taps[_PLAIN_LAYER].dtype))
        return cam.class_activation_maps(features, class_weights, relu=True)

    total = jnp.zeros((), jnp.float32)
    for scale in config.cam.scales:
        resized = cam.resize_image(image, scale)
        maps = masks.resize_maps(compute(resized), image.shape[1:3])
        if config.cam.flip:
            mirrored = masks.resize_maps(compute(jnp.flip(resized, 2)), image.shape[1:3])
            maps = maps + jnp.flip(mirrored, 3)
        total = total + maps
    return total


def normalize_maps(maps: jax.Array, settings: ml_collections.ConfigDict) -> jax.Array:
    """Divides maps (B, C, H, W) by their maximum + `settings.epsilon`, each image and class.

    The background class, where there is one, gets the same score everywhere.
    """
    maps = maps / (maps.max(axis=(2, 3), keepdims=True) + settings.epsilon)
    if settings.background_class < 0:
        return maps
    return maps.at[:, settings.background_class].set(settings.background)


def find_predicted(settings: ml_collections.ConfigDict, presence: jax.Array) -> jax.Array:
    """Finds the classes (B, C) bool that patches are predicted to have.

    Where no probability is over `settings.threshold`, it is the highest. The background class is in
    every patch.
    """
    is_predicted = presence > settings.threshold
    is_highest = presence == presence.max(axis=1, keepdims=True)
    is_predicted |= is_highest & ~is_predicted.any(axis=1, keepdims=True)
    if settings.background_class >= 0:
        is_predicted = is_predicted.at[:, settings.background_class].set(True)
    return is_predicted


def make_label_maps(
    settings: ml_collections.ConfigDict, maps: jax.Array, presence: jax.Array
) -> jax.Array:
    """Makes label maps: the highest normalized score among the classes that are predicted.

    Where all of these are 0 it is the first of them.

    Args:
      settings: the fields `config.cam`.
      maps: (B, C, H, W), at least 0; see `add_maps`.
      presence: (B, C) predicted probabilities.

    Returns:
      (B, H, W) uint8.
    """
    is_predicted = find_predicted(settings, presence)[:, :, None, None]
    scores = jnp.where(is_predicted, normalize_maps(maps, settings), -1)
    return scores.argmax(axis=1).astype(jnp.uint8)


def share_activations(
    config: ml_collections.ConfigDict, prediction: Prediction, size: Sequence[int]
) -> jax.Array:
    """Shares pixels out among the predicted classes in proportion to their normalized maps.

    A background class gets (1 - the largest of the others) ** `config.cam.background_power`, as the
    released code gives to its CRF; else the strongest class is that of the label maps. See
    `contract.Method.share_activations`.
    """
    assert prediction.activations is not None and prediction.presence is not None  # see `predict`
    settings = config.cam
    is_predicted = find_predicted(settings, prediction.presence)[:, :, None, None]
    scores = normalize_maps(masks.resize_maps(prediction.activations, size), settings)
    scores = jnp.where(is_predicted, scores, 0)
    if settings.background_class >= 0:
        others = scores.at[:, settings.background_class].set(0).max(axis=1)
        background = (1 - others) ** settings.background_power
        scores = scores.at[:, settings.background_class].set(background)
    scores = jnp.where(is_predicted, jnp.maximum(scores, settings.epsilon), 0)
    return jnp.moveaxis(scores / scores.sum(axis=1, keepdims=True), 1, -1)


def pool_features(
    config: ml_collections.ConfigDict, network: ResNet38, variables: Variables, image: jax.Array
) -> jax.Array:
    """Computes what the classifiers see of images (B, H, W, 3) uint8; (B, 4096 * width) float32."""
    _, taps = network.apply(variables, pixels.scale(image, config.model), train=False)
    features = taps[_PLAIN_LAYER]
    return features.mean(axis=(1, 2), dtype=accumulator(features.dtype))


def open_layers(
    config: ml_collections.ConfigDict,
    network: ResNet38,
    variables: Variables,
    image: jax.Array,
    layers: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Computes activation maps of images (B, H, W, 3) uint8 by layer.

    At "bn7" they are the normalized maps of SC-CAM, of all its scales, (B, C, H, W), divided
    by their number of pixels as Grad-CAM is: `cam.average_scales` multiplies by it. Other layers
    give Grad-CAM (Eq. 6 of Han et al. 2022), see `cam.grad_cam`.
    """
    maps: dict[str, jax.Array] = {}
    if others := tuple(layer for layer in layers if layer != _PLAIN_LAYER):
        scaled = pixels.scale(image, config.model)
        maps, _ = cam.grad_cam(network, variables, scaled, others)
    if _PLAIN_LAYER in layers:
        normalized = normalize_maps(add_maps(config, network, variables, image), config.cam)
        maps[_PLAIN_LAYER] = normalized / (image.shape[1] * image.shape[2])
    return {layer: maps[layer] for layer in layers}
