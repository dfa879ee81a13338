"""What a network needs beside its weights, of methods that measure it: a file beside theirs."""

import json
from pathlib import Path

import ml_collections

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.methods.contract import load_method
from wsss_jax.training.trained import Trained

_CLASSES, _FIELDS = "classes", "fields"
_REMEDY = "export the run again, or copy the file that was exported with the weights"


def list_fields(job: str) -> list[str]:
    """Lists the fields that go with the weights of a method; none if it measures nothing.

    Those are the measured and calibrated ones, and what else its network and label maps are made
    of.
    """
    method, measured = load_method(job), _list_measured(job)
    of_maps = getattr(method, "MAP_FIELDS", ())
    others = {name for name in method.FIELDS if name.startswith("model.") or name in of_maps}
    return sorted({*measured, *others}) if measured else []


def _list_measured(job: str) -> tuple[str, ...]:
    method = load_method(job)
    return (*getattr(method, "MEASURED", ()), *getattr(method, "CALIBRATED", ()))


def find(weights: Path) -> Path:
    """Returns the file that belongs to a file of weights: the same name, with the suffix .json."""
    return weights.with_suffix(".json")


def save(trained: Trained, path: Path) -> None:
    """Writes the classes and the fields of a trained run, as JSON, under their names."""
    config = trained.config
    contents = {
        "method": config.job,
        _CLASSES: trained.dataset.classes,
        _FIELDS: {name: config_lib.get(config, name) for name in list_fields(config.job)},
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def take_up(
    config: ml_collections.ConfigDict, weights: Path, dataset: Dataset
) -> ml_collections.FrozenConfigDict:
    """Returns the settings of a run with the fields that go with its weights.

    Args:
      config: of a method; one that measures nothing has no such fields.
      weights: the file of its weights.
      dataset: whose classes they are to tell.

    Raises:
      InputError: there is no such file beside them, it is damaged, or of other classes.
    """
    names, measured = list_fields(config.job), _list_measured(config.job)
    if not names:
        return config_lib.freeze(config)
    path = find(weights)
    if not path.is_file():
        raise InputError(
            f"{weights}: {path.name} is not beside it, which has what {config.job} needs to know "
            f"beside the weights: {_REMEDY}, or train from the weights with --config.init"
        )
    contents = config_lib.read_object(path, _REMEDY)
    fields = contents.get(_FIELDS)
    if not isinstance(fields, dict):
        raise InputError(f"{path}: {_FIELDS} is missing or damaged: {_REMEDY}")
    rules = load_method(config.job).FIELDS
    for name in names:
        value = fields.get(name)
        if not rules[name].allows(value) or (value == () and name in measured):
            raise InputError(f"{path}: {name} is missing or damaged: {_REMEDY}")
    if contents.get(_CLASSES) != dataset.classes:
        raise InputError(
            f"{path}: the weights are of the classes {contents.get(_CLASSES)}, the data set has "
            f"{dataset.classes}: name the data set that they were trained on, "
            "--config=configs/convert.py:dataset=<its dataset.json>"
        )
    return config_lib.fill(config, {name: fields[name] for name in names})
