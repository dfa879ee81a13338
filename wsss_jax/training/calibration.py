"""Fields that a method takes from its scores of the validation patches, once it is trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import inputs, parallel
from wsss_jax.checkpoints import has_checkpoint, load_variables
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.methods.contract import Calibrating, Method, load_method
from wsss_jax.sources import Source
from wsss_jax.state import network_shapes
from wsss_jax.training import history
from wsss_jax.training.task import DeviceBatch, Variables

FILE = "calibration.json"
_REMEDY = "give the command that trained it again, which makes the file anew"


def clear(workdir: Path) -> None:
    """Removes the calibration of weights that are not there any more, before training."""
    if parallel.is_first() and not has_checkpoint(workdir):
        (workdir / FILE).unlink(missing_ok=True)


def calibrate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    dataset: Dataset,
    validation: Source | None,
) -> None:
    """Writes `calibration.json` after training, of a method that is a `contract.Calibrating` one.

    Args:
      config: of the run, whose training is finished.
      workdir: of the run; the weights are those that later jobs take.
      dataset: of the patches.
      validation: the patches to calibrate on; None: there are none.
    """
    method = load_method(config.job)
    if not isinstance(method, Calibrating):
        return
    presence = np.zeros((0, dataset.num_classes), np.float32)
    labels = np.zeros((0, dataset.num_classes), np.uint8)
    if validation is not None:
        presence, labels = _predict(config, workdir, method, validation, dataset.num_classes)
    if not parallel.is_first():
        return
    fields = method.calibrate(config, dataset.classes, presence, labels)
    with atomic_path(workdir / FILE) as path:
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _predict(
    config: ml_collections.ConfigDict,
    workdir: Path,
    method: Method,
    source: Source,
    num_classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts which classes patches have; returns this, (N, C) float32, and their labels."""
    network = method.build_network(config, num_classes)
    shapes = network_shapes(network)
    variables = load_variables(workdir, history.selecting_score(config), shapes)

    def predict(variables: Variables, batch: DeviceBatch) -> dict[str, Any]:
        # Of label maps, which are not asked for, nothing is computed.
        presence = method.predict(config, network, variables, batch["image"]).presence
        return {"presence": presence}

    mapped = parallel.map_batch(predict)
    found = inputs.map_patches(
        source,
        config.batch_size,
        lambda batch: {**mapped(variables, batch), "labels": batch["label"]},
    )
    return found["presence"], found["labels"]


def take_up(config: ml_collections.ConfigDict, workdir: Path) -> ml_collections.ConfigDict:
    """Returns the configuration of a trained run with the fields of its calibration.

    Raises:
      InputError: the method is calibrated, but there is no calibration, or a damaged one.
    """
    method = load_method(config.job)
    if not isinstance(method, Calibrating):
        return config
    path = workdir / FILE
    if not path.is_file():
        raise InputError(
            f"{workdir}: {FILE} is missing, which is written when training ends: finish the "
            "training with the same command"
        )
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}): {_REMEDY}") from error
    rules = method.FIELDS
    if not isinstance(fields, dict):
        raise InputError(f"{path}: not an object of JSON, {{...}}: {_REMEDY}")
    values = {name: _to_tuple(value) for name, value in fields.items()}
    for name, value in values.items():
        open_field = name in rules and config_lib.get(config, name) == ()
        if not open_field or not rules[name].allows(value):
            raise InputError(f"{path}: {name} is damaged or of a later version: {_REMEDY}")
    return config_lib.fill(config, values)


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
