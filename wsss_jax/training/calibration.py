"""Fields that a method takes from its scores of the validation patches, once it is trained."""

import json
from pathlib import Path
from typing import Any, cast

import ml_collections
import numpy as np

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import inputs, parallel
from wsss_jax.checkpoints import has_checkpoint, load_variables
from wsss_jax.config_rules import Rule
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.methods.contract import Calibrating, load_method
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
    """Writes `calibration.json` after training: the fields that the configuration leaves open.

    Where there are none, it removes the file of an earlier start that left some open.

    Args:
      config: of the run, whose training is finished.
      workdir: of the run; the weights are those that later jobs take.
      dataset: of the patches.
      validation: the patches to calibrate on; None: there are none.
    """
    missing = _list_open(config)
    if not missing:
        if parallel.is_first():
            (workdir / FILE).unlink(missing_ok=True)
        return
    method = cast(Calibrating, load_method(config.job))
    presence = np.zeros((0, dataset.num_classes), np.float32)
    labels = np.zeros((0, dataset.num_classes), np.uint8)
    if validation is not None:
        presence, labels = _predict(config, workdir, validation, dataset.num_classes)
    if not parallel.is_first():
        return
    values = method.calibrate(config, dataset.classes, presence, labels)
    fields = {field: values[field] for field in missing}
    with atomic_path(workdir / FILE) as path:
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _list_open(config: ml_collections.ConfigDict) -> list[str]:
    """Lists the fields that are to be calibrated; most methods have none."""
    fields = getattr(load_method(config.job), "CALIBRATED", ())
    return [field for field in fields if config_lib.get(config, field) == ()]


def _predict(
    config: ml_collections.ConfigDict, workdir: Path, source: Source, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts which classes patches have; returns this, (N, C) float32, and their labels."""
    method = load_method(config.job)
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


def take_up(
    config: ml_collections.ConfigDict, workdir: Path, num_classes: int
) -> ml_collections.ConfigDict:
    """Returns the configuration of a trained run with the fields of its calibration.

    Raises:
      InputError: fields are to be calibrated, but there is no calibration, or one that is damaged,
        lacks a field, or has not a value for each class.
    """
    missing = _list_open(config)
    if not missing:
        return config
    path = workdir / FILE
    if not path.is_file():
        raise InputError(
            f"{workdir}: {FILE} is missing, which is written when training ends: finish the "
            "training with the same command"
        )
    rules = load_method(config.job).FIELDS
    fields = config_lib.read_object(path, _REMEDY)
    for name in (*fields, *missing):
        if name not in fields:
            raise InputError(f"{path}: {name} is missing: {_REMEDY}")
        if name not in missing or not _is_valid(fields[name], rules[name], num_classes):
            raise InputError(f"{path}: {name} is damaged or of a later version: {_REMEDY}")
    return config_lib.fill(config, fields)


def _is_valid(value: Any, rule: Rule, num_classes: int) -> bool:
    """Tells whether a field may have a value, which is to have an entry for each class."""
    return isinstance(value, tuple) and len(value) == num_classes and rule.allows(value)
