"""What SC-CAM starts from, and that devices share its work."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from data import synthetic
from tests.conftest import tiny_sccam
from tests.golden import reference
from tests.interop.mxnet_writer import array_list, encode, mxnet_name
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_names, weights
from wsss_jax.methods import sccam
from wsss_jax.state import network_shapes
from wsss_jax.training import initialization
from wsss_jax.training.task import Task

REPOSITORY = Path(__file__).parents[1]
CLASSES, K = synthetic.DATASET.num_classes, 3
HEADS = {"fc8", "fc8_sub"}


def _write_imagenet(path):
    """Writes weights of a narrow ResNet38 as those of ImageNet are; returns them."""
    config = tiny_sccam("unused")
    config.model.batch_norm = "trained"
    shapes = torch_names.torch_shapes(network_shapes(sccam.build_network(config, CLASSES)))
    tensors = {n: reference.tensor(n, s) for n, s in shapes.items() if not n.startswith("fc8")}
    arrays = {**tensors, "classifier": np.ones((1000, 256), np.float32)}
    kinds = {n: "aux" if "running" in n else "arg" for n in tensors}
    names = [f"{kinds[n]}:{mxnet_name(n)}".encode() for n in tensors]
    encoded = [encode("V2", array) for array in arrays.values()]
    path.write_bytes(array_list(encoded, [*names, b"arg:linear1000_weight"]))
    return tensors


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "imagenet.params"
    return path, _write_imagenet(path)


def _configure(path, sub_categories):
    config = tiny_sccam("unused", 1)
    config.init = str(path)
    sccam.complete(config, synthetic.DATASET)
    assert config.model.batch_norm == "frozen"
    config.model.sub_categories = sub_categories
    return config


@pytest.mark.parametrize("sub_categories", [0, K])
def test_imagenet_weights_leave_the_classifiers_random(imagenet, sub_categories, capsys):
    path, tensors = imagenet
    config = _configure(path, sub_categories)
    task = sccam.make_task(config, CLASSES, 10)
    variables, report = initialization.initialize_variables(config, task.network)
    state = torch_names.to_torch(variables)
    for name, array in tensors.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    heads = HEADS if sub_categories else {"fc8"}
    assert {entry.name for entry in report.initial} == {f"{head}.weight" for head in heads}
    assert f"loaded: {len(tensors)} of " in capsys.readouterr().out
    for head in heads:
        kernel = variables["params"][head]["kernel"]
        assert 0 < np.abs(kernel).max() <= np.sqrt(6 / sum(kernel.shape[2:]))
    _check_what_is_trained(task, variables)


def _check_what_is_trained(task: Task, variables: dict) -> None:
    """The first blocks and every scale and offset stay; the classifiers learn ten times faster."""
    flat = flatten_dict(variables["params"])
    trained = {path for path in flat if task.is_trained(path)}
    assert {path[0] for path in flat} - {path[0] for path in trained} == {
        *("conv1a", "b2", "b2_1", "b2_2"),
        "bn7",
    }
    assert all(path[-1] == "kernel" for path in trained)
    tree = unflatten_dict({path: flat[path] for path in trained})
    ones, nothing = jax.tree.map(np.ones_like, tree), jax.tree.map(np.zeros_like, tree)
    updates, _ = task.optimizer.update(ones, task.optimizer.init(nothing), nothing)
    steps = {path: float(value.ravel()[0]) for path, value in flatten_dict(updates).items()}
    rates = {-value / (10 if path[0] in HEADS else 1) for path, value in steps.items()}
    np.testing.assert_allclose(sorted(rates), 0.01, rtol=1e-6)


def test_weights_of_another_network_are_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    weights.save_safetensors({"backbone.conv1.weight": np.ones((4, 3, 7, 7), np.float32)}, other)
    config = _configure(other, 0)
    network = sccam.build_network(config, CLASSES)
    with pytest.raises(InputError, match=r"these are weights of phase2: name some of sccam"):
        initialization.initialize_variables(config, network)


def _step_on(devices, out):
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",
    )
    environment = os.environ | {
        "XLA_FLAGS": " ".join(flags),
        "PJRT_NPROC": str(2 * devices),  # fewer threads dead-lock the collectives
        "PYTHONPATH": str(REPOSITORY),
    }
    script = REPOSITORY / "tests" / "sccam_step.py"
    subprocess.run([sys.executable, script, out], env=environment, check=True)
    with np.load(out) as results:
        return dict(results)


@pytest.mark.long
def test_eight_devices_do_what_one_does(tmp_path):
    """Gradients and statistics with color, dropout and filling, and the features of clusters."""
    one, eight = (_step_on(devices, tmp_path / f"{devices}.npz") for devices in (1, 8))
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    assert one.keys() == eight.keys()
    moved = {name for name, value in one.items() if name.startswith("moved/") and value.any()}
    assert {f"moved/params/{head}/kernel" for head in HEADS} <= moved and len(moved) > 150
    for name, value in one.items():
        # float64: only the sums over the batch are taken in another order; metrics are float32
        tolerance = 1e-6 if name.startswith("metrics") else 1e-9
        atol = tolerance * np.abs(value).max() + 1e-12
        np.testing.assert_allclose(eight[name], value, rtol=0, atol=atol, err_msg=name)
