"""The figures of the validation patches, of any method."""

from typing import Any

import jax
import ml_collections
import numpy as np

from wsss_jax import inputs, metrics, parallel
from wsss_jax.errors import InputError
from wsss_jax.methods.contract import load_method
from wsss_jax.sources import Source
from wsss_jax.training.task import DeviceBatch, Validate, Variables


def make_validation(
    config: ml_collections.ConfigDict, num_classes: int, source: Source
) -> Validate:
    """Makes a function of the variables that scores a method on patches.

    Its figures are those of the classes of patches ("val_..."), if the method predicts them, and
    those of label maps (see `metrics.segmentation_scores`), if the patches have true masks.

    Raises:
      InputError: the method predicts pixels only, and the patches have no true masks.
    """
    method = load_method(config.job)
    if "presence" not in method.GIVES and "masks" not in source[0]:
        raise InputError(
            f"{config.data.root}: the validation patches have no masks, which {method.TITLE} needs "
            "to choose its checkpoint: add val/mask, or remove val and set --config.select=last"
        )
    network = method.build_network(config, num_classes)

    def score(variables: Variables, batch: DeviceBatch) -> dict[str, jax.Array]:
        prediction = method.predict(config, network, variables, batch["image"])
        scores = {}
        if prediction.presence is not None:
            scores["presence"] = prediction.presence
        if "masks" in batch:
            truth = batch["masks"][:, 0]
            scores["confusion"] = metrics.confusion_matrices(
                truth, prediction.label_maps, num_classes
            )
        return scores

    mapped = parallel.map_batch(score)

    def validate(variables: Variables) -> dict[str, Any]:
        whole = inputs.map_patches(
            source,
            config.batch_size,
            lambda batch: {**mapped(variables, batch), "label": batch["label"]},
        )
        figures: dict[str, Any] = {}
        if "presence" in whole:
            scores = metrics.multilabel_scores(whole["presence"], whole["label"])
            figures |= {f"val_{name}": value for name, value in scores.items()}
        if "confusion" in whole:
            confusion = whole["confusion"].sum(axis=0, dtype=np.int64)
            figures |= metrics.segmentation_scores(confusion)
        return figures

    return validate
