"""Fields that only label maps use: no training depends on them, so that they may change."""

import jax
import numpy as np
import pytest

from data import synthetic
from tests.conftest import SIZE, tiny_histosegnet, tiny_phase1, tiny_sccam
from wsss_jax import config as config_lib
from wsss_jax import parallel
from wsss_jax.errors import InputError
from wsss_jax.methods.contract import load_method
from wsss_jax.runs import check, save
from wsss_jax.state import network_shapes
from wsss_jax.training.trained import Trained

TINY = {"phase1": tiny_phase1, "histosegnet": tiny_histosegnet, "sccam": tiny_sccam}
CLASSES = synthetic.DATASET.num_classes


def _configure(name):
    config = TINY[name]("unused")
    if name == "histosegnet":
        config.model.mean, config.model.std = (0.7,) * 3, (0.2,) * 3
        config.loss.class_weights = (1.0,) * CLASSES
    load_method(name).complete(config, synthetic.DATASET)
    return config_lib.freeze(config)


def _change(field, value):
    """Another value that a field may have."""
    if isinstance(value, tuple):
        return (1,) if field == "background.exceptions" else (0.5,) * CLASSES
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 0.9


def _change_all(config):
    fields = load_method(config.job).MAP_FIELDS
    values = {field: _change(field, config_lib.get(config, field)) for field in fields}
    changed = config_lib.fill(config, values)
    config_lib.validate(changed)
    assert len(config_lib.differences(config, changed)) == len(fields)
    return changed


def _lower_loss(config):
    """The text of the program that computes the loss of a batch."""
    task = load_method(config.job).make_task(config, CLASSES, 10)
    values = {"mu": np.float32(0.9)} if config.job == "phase1" else {}
    batch = {
        "image": np.zeros((2, SIZE, SIZE, 3), np.uint8),
        "label": np.zeros((2, CLASSES), np.uint8),
        "weight": np.ones(2, np.float32),
        "position": np.arange(2, dtype=np.int32),
    }
    network = load_method(config.job).build_network(config, CLASSES)

    def compute(variables, rng):
        return task.loss(variables, batch, task.totals(batch), values, rng)

    mapped = jax.vmap(compute, in_axes=(None, 0), axis_name=parallel.AXIS)
    rngs = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return jax.jit(mapped).lower(network_shapes(network), rngs).as_text()


@pytest.mark.parametrize("name", TINY)
def test_training_does_not_depend_on_them(name):
    config = _configure(name)
    program = _lower_loss(config)
    assert program == _lower_loss(_change_all(config))
    assert program != _lower_loss(config_lib.fill(config, {"model.std": (0.3,) * 3}))


@pytest.mark.parametrize("name", TINY)
def test_they_may_change_once_a_run_is_trained(name, tmp_path):
    config = _configure(name)
    save(config, synthetic.DATASET, tmp_path)
    changed = _change_all(config)
    check(changed, tmp_path, started=True, trained=True)
    words = r"to go on with it \(they may change once all its epochs are trained\), or name another"
    with pytest.raises(InputError, match=words):
        check(changed, tmp_path, started=True)
    also_seed = config_lib.replace(changed, seed=7)
    with pytest.raises(InputError, match=r"\(seed: 0 / 7\): set them as they were to go on with"):
        check(also_seed, tmp_path, started=True, trained=True)


@pytest.mark.parametrize("name", TINY)
def test_masks_know_what_their_activation_maps_were_made_with(name):
    def stamp(config):
        variables = {"params": {"kernel": np.arange(3.0)}}
        return Trained(config, synthetic.DATASET, None, variables).describe_activations()

    config, method = _configure(name), load_method(name)
    of_activations = getattr(method, "ACTIVATION_FIELDS", ())
    assert set(of_activations) <= set(method.MAP_FIELDS)
    assert bool(of_activations) == (name == "sccam")
    if not of_activations:  # as in the files of earlier versions
        assert stamp(config).startswith("CRC-32 of the weights: ")
        assert stamp(config).count("\n") == 1
    for field in method.MAP_FIELDS:
        value = _change(field, config_lib.get(config, field))
        changed = config_lib.fill(config, {field: value})
        assert (stamp(changed) != stamp(config)) == (field in of_activations), field
