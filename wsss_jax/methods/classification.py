"""What the methods that classify patches have in common in training."""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import ml_collections

from wsss_jax import pixels
from wsss_jax.augmentation import examples
from wsss_jax.training.task import DeviceBatch, LossFunction, Variables

Average = Callable[[jax.Array], jax.Array]  # (B,) of patches -> their share of the mean of a batch
# (logits, taps, batch, average) -> averaged metrics, "loss" among them
Compare = Callable[[jax.Array, Mapping[str, jax.Array], DeviceBatch, Average], dict[str, jax.Array]]


def count_patches(batch: DeviceBatch) -> dict[str, jax.Array]:
    """Returns what the loss is divided by: the number of "patches" of a batch, () float32."""
    return {"patches": batch["weight"].sum()}


def make_loss(
    config: ml_collections.ConfigDict,
    network: nn.Module,
    compare: Compare,
    arguments: Sequence[str] = (),
) -> LossFunction:
    """Makes the loss of a classifier: augments patches, classifies them, compares with the labels.

    To the metrics of `compare` it adds "patch_accuracy", the share of classes that are right. All
    are shares of means over the global batch, see `training.task`.

    Args:
      config: of the method.
      network: images -> (logits (B, C), taps).
      compare: of the batch it may use "label" (B, C) and what a method has added.
      arguments: scalars that the network takes if the task gives them, such as "mu".
    """

    def loss_function(
        variables: Variables,
        batch: DeviceBatch,
        totals: Mapping[str, jax.Array],
        values: Mapping[str, jax.Array],
        rng: jax.Array,
    ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
        augment_rng, dropout_rng = jax.random.split(rng)
        weight, position = batch["weight"], batch["position"]
        image, _ = examples.augment(augment_rng, batch["image"], None, config.augment, position)
        (logits, taps), updated = network.apply(
            variables,
            pixels.scale(image, config.model),
            train=True,
            **{name: values[name] for name in arguments if name in values},
            weight=weight,
            position=position,
            rngs={"dropout": dropout_rng},
            mutable=["batch_stats"],
        )

        def average(by_patch: jax.Array) -> jax.Array:
            return (by_patch * weight).sum() / totals["patches"]

        metrics = compare(logits, taps, batch, average)
        is_right = (logits > 0) == (batch["label"] > 0)
        metrics["patch_accuracy"] = average(is_right.mean(axis=-1))
        # Frozen statistics are not among what is updated.
        batch_stats = updated.get("batch_stats", variables["batch_stats"])
        return metrics["loss"], (batch_stats, metrics)

    return loss_function
