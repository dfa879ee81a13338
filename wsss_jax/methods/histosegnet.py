"""HistoSegNet (Chan et al. 2019): a small patch classifier, and maps of its Grad-CAM.

No network is trained to segment. Classes have thresholds of their own, from the ROC curves of the
validation patches; maps of the classes that reach theirs are scaled, compete with each other and
with white background, and are smoothed by a dense CRF.

Label maps have tissue classes only, as those of all methods: white pixels of the truth do not
count. The background takes part as a further class until the end; a pixel that it wins gets the
class of its strongest map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import cam, metrics, optimizers, parallel, pixels, schedules
from wsss_jax import config_rules as rules
from wsss_jax.augmentation import examples
from wsss_jax.crf import DenseCrf, refine
from wsss_jax.errors import InputError
from wsss_jax.methods import arithmetic, classification
from wsss_jax.methods.adjustment import (
    Background,
    find_present,
    make_background,
    scale_maps,
    subtract_classes,
)
from wsss_jax.methods.losses import weighted_cross_entropy
from wsss_jax.methods.prediction import Prediction
from wsss_jax.models.x17 import CAM_LAYER, MOST_STRIDE, X17
from wsss_jax.training.task import DeviceBatch, LossFunction, Task, Variables, check_whole_batches

TITLE = "HistoSegNet"
GIVES = frozenset({"presence", "activations"})
LAYERS = rules.X17_LAYERS
MEASURED = ("model.mean", "model.std", "loss.class_weights")
CALIBRATED = ("cam.thresholds",)
_CLASS = rules.integer(0, 254)
_AS_DATASET = -1.0  # of background.weight
_WHITE_WEIGHT = 0.75  # of background.weight, in the released code
FIELDS: dict[str, rules.Rule] = {
    **rules.DATA,
    **rules.TRAINING,
    **rules.CRF,
    "model.mean": rules.measured(rules.TRAINING["model.mean"]),
    "model.std": rules.measured(rules.TRAINING["model.std"]),
    "model.pooling": rules.one_of("maximum", "mean"),
    "model.dropout_rates": rules.sequence(rules.number(0, 0.99), 4),
    "loss.class_weights": rules.sequence(rules.number(0, rules.LARGEST)),
    "cam.thresholds": rules.sequence(rules.PROBABILITY),
    "background.weight": rules.Rule(
        lambda value: value == _AS_DATASET or rules.PROBABILITY.allows(value),
        f"{rules.PROBABILITY.text}, or {_AS_DATASET:g} for what the data set says",
    ),
    "background.slope": rules.number(0, rules.LARGEST),
    "background.level": rules.number(0, 255),
    "background.sigma": rules.number(0, 100),
    "background.exceptions": rules.sequence(_CLASS),
}
MAP_FIELDS = tuple(name for name in FIELDS if name.startswith(("cam.", "background.", "crf.")))
_HEAD_MODULES = ("fc",)
_UNCALIBRATED = 0.5  # threshold of a class that validation patches do not tell


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses fields that do not go together; see `config.validate`."""
    examples.check(config.augment, prefix)


def complete(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """Decides whether white background takes part; see `contract.Method.complete`."""
    check_whole_batches(config.accumulate)
    if config.background.weight == _AS_DATASET:
        config.background.weight = _WHITE_WEIGHT if dataset.white else 0.0


def measure(
    config: ml_collections.ConfigDict, counts: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Measures the input's mean and deviation, and class weights; see `contract.Measuring`.

    One number for all channels, of x / 255. The weight of a class is patches / patches that have
    it, and 1 where none has.

    Raises:
      InputError: all pixels have one value.
    """
    del config
    values = np.arange(256) / 255
    mean = float(counts @ values / counts.sum())
    std = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
    if np.count_nonzero(counts) < 2:
        raise InputError(
            f"all pixels of the training patches have the value {counts.argmax()}: nothing can be "
            "learned from them, correct the patches"
        )
    present = labels.astype(bool).sum(axis=0)
    weights = np.where(present, len(labels) / np.maximum(present, 1), 1.0)
    return {
        "model.mean": (mean,) * 3,
        "model.std": (std,) * 3,
        "loss.class_weights": tuple(weights.tolist()),
    }


def calibrate(
    config: ml_collections.ConfigDict,
    classes: Sequence[str],
    presence: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    """Finds the threshold of each class on its ROC curve; see `contract.Calibrating`."""
    del config
    thresholds = metrics.balanced_thresholds(presence, labels)
    if unknown := [name for name, value in zip(classes, thresholds) if np.isnan(value)]:
        what = (
            f"all or none of the validation patches have {', '.join(unknown)}"
            if len(presence)
            else "there are no validation patches"
        )
        tqdm.write(
            f"{what}: a threshold cannot be calibrated and is {_UNCALIBRATED}; for another one "
            "give the same command with --config.cam.thresholds, or train in another --workdir "
            "with such patches in val"
        )
    return {"cam.thresholds": tuple(np.nan_to_num(thresholds, nan=_UNCALIBRATED).tolist())}


def build_network(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> X17:
    """Builds the classifier.

    Raises:
      InputError: fields of classes are not of as many as the data set has.
    """
    _check_classes(config, num_classes)
    return X17(
        num_classes=num_classes,
        width=config.model.width,
        pooling=config.model.pooling,
        dropout_rates=tuple(config.model.dropout_rates),
        axis_name=axis_name,
        **arithmetic.choose(config),
    )


def _check_classes(config: ml_collections.ConfigDict, num_classes: int) -> None:
    for field, values, empty in (
        ("cam.thresholds", config.cam.thresholds, "calibrated"),
        ("loss.class_weights", config.loss.class_weights, "measured"),
    ):
        if len(values) not in (0, num_classes):
            raise InputError(
                f"config.{field} has {len(values)} entries but the data set has {num_classes} "
                f'classes: give one for each, or set --config.{field}="()" to have them {empty}'
            )
    if wrong := [index for index in config.background.exceptions if index >= num_classes]:
        raise InputError(
            f"config.background.exceptions names class {wrong[0]} but the data set has "
            f"{num_classes}, from 0: correct the indices"
        )


def make_task(config: ml_collections.ConfigDict, num_classes: int, total_steps: int) -> Task:
    """Says what is trained, and how.

    Raises:
      InputError: patches of which three halvings leave nothing.
    """
    if config.data.patch_size < MOST_STRIDE:
        raise InputError(
            f"config.data.patch_size is {config.data.patch_size}, but the network halves patches "
            f"three times: give patches of at least {MOST_STRIDE} pixels"
        )
    network = build_network(config, num_classes, parallel.AXIS)
    optimizer = schedules.scale_learning_rate(config.optimizer, config.batch_size)
    return Task(
        network=network,
        totals=classification.count_patches,
        loss=make_loss(config, network),
        metrics=("loss", "patch_accuracy"),
        values=lambda epoch, step: {},
        optimizer=optimizers.make_optimizer(optimizer, total_steps, _HEAD_MODULES),
        learning_rate=schedules.learning_rates(optimizer, total_steps)["weight"],
        is_trained=lambda path: True,
        parts=config.accumulate,
        rematerialize=config.rematerialize,
        prepare=examples.make_move(config.augment, num_classes),
    )


def make_loss(config: ml_collections.ConfigDict, network: X17) -> LossFunction:
    """Makes the loss, the weighted cross entropy; see `classification.make_loss`."""

    def compare(
        logits: jax.Array,
        taps: Mapping[str, jax.Array],
        batch: DeviceBatch,
        average: classification.Average,
    ) -> dict[str, jax.Array]:
        class_weights = jnp.asarray(config.loss.class_weights, logits.dtype)
        losses = weighted_cross_entropy(logits, batch["label"], class_weights)
        return {"loss": average(losses)}

    return classification.make_loss(config, network, compare)


def predict(
    config: ml_collections.ConfigDict, network: X17, variables: Variables, image: jax.Array
) -> Prediction:
    """Predicts the classes of patches, and their segmentation; see `contract.Method.predict`."""
    scaled = pixels.scale(image, config.model)
    maps, logits = cam.grad_cam(network, variables, scaled, (CAM_LAYER,))
    prediction = Prediction(
        jnp.zeros(image.shape[:3], jnp.uint8),
        presence=jax.nn.sigmoid(logits),
        activations=maps[CAM_LAYER],
    )
    return prediction._replace(label_maps=label_activations(config, prediction, image))


def label_activations(
    config: ml_collections.ConfigDict, prediction: Prediction, image: jax.Array
) -> jax.Array:
    """Makes label maps of Grad-CAM; see `contract.Method.label_activations`.

    Without CRF, the class of a pixel is that of its strongest map, which the subtraction leaves as
    it is. In training, before there are thresholds, these are 0.5 and the CRF, which would take
    longer than the training itself, is left out.
    """
    presence, activations = prediction.presence, prediction.activations
    assert presence is not None and activations is not None  # see `predict`
    num_classes = presence.shape[1]
    thresholds = config.cam.thresholds or (_UNCALIBRATED,) * num_classes
    is_present = find_present(presence, jnp.asarray(thresholds, presence.dtype))
    maps = scale_maps(activations, presence, is_present, image.shape[1:3])
    possible = is_present[:, :, None, None]
    strongest = jnp.where(possible, maps, -1).argmax(axis=1).astype(jnp.uint8)
    if not config.cam.thresholds or not config.crf.iterations:
        return strongest
    if config.background.weight:
        white = make_background(image, maps, Background.of(config.background))
        maps = jnp.concatenate([maps, white], axis=1)
        possible = jnp.concatenate([possible, jnp.ones_like(possible[:, :1])], axis=1)
    scores = jnp.clip(subtract_classes(maps), config.crf.clip, 1)
    unary = jnp.where(possible, -jnp.log(scores), jnp.inf)
    unary = jnp.moveaxis(unary, 1, -1).astype(jnp.float32)
    refined = refine(unary, image, DenseCrf.of(config.crf)).argmax(axis=-1)
    return jnp.where(refined < num_classes, refined, strongest).astype(jnp.uint8)


def open_layers(
    config: ml_collections.ConfigDict,
    network: X17,
    variables: Variables,
    image: jax.Array,
    layers: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Computes the Grad-CAM of images (B, H, W, 3) uint8 by layer, see `cam.grad_cam`."""
    maps, _ = cam.grad_cam(network, variables, pixels.scale(image, config.model), layers)
    return maps
