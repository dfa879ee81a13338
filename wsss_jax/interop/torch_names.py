"""State dicts of the released PyTorch networks <-> variables of ours.

The names map by rule. `backbone.layer1.0.conv1.weight` is
`params["backbone"]["layer1_0"]["conv1"]["kernel"]`: an index joins the name before it, a
one-dimensional weight is a `scale`, running statistics live in "batch_stats", and convolution
kernels turn from OIHW to HWIO. Works on arrays only; PyTorch is not needed.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from wsss_jax.errors import InputError

_COUNTER = "num_batches_tracked"
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
_STATISTICS_TO_TORCH = {ours: theirs for theirs, ours in _STATISTICS.items()}
_RESNET38_BLOCK = re.compile(r"b\d+_\d+")  # "b4_5" is a name of its own, not entry 5 of "b4"
_INDEXED = re.compile(r"(.+)_(\d+)")


def to_flax(state_dict: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Converts a state dict of NumPy arrays to variables of `ResNet38` or `DeepLabV3Plus`.

    PyTorch's batch counters are left out. Kernels are views of the arrays given.

    Raises:
      InputError: an entry is neither a weight, a bias nor a running statistic, or a weight has
        neither one nor four dimensions.
    """
    variables: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    for name, value in state_dict.items():
        *path, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
        if leaf == _COUNTER:
            continue
        collection, leaf, value = _leaf_to_flax(name, leaf, np.asarray(value))
        module = variables[collection]
        for part in path:
            module = module.setdefault(part, {})
        module[leaf] = value
    return variables


def _leaf_to_flax(name: str, leaf: str, value: np.ndarray) -> tuple[str, str, np.ndarray]:
    if leaf in _STATISTICS:
        return "batch_stats", _STATISTICS[leaf], value
    if leaf == "bias":
        return "params", "bias", value
    if leaf == "weight" and value.ndim == 1:
        return "params", "scale", value
    if leaf == "weight" and value.ndim == 4:
        return "params", "kernel", value.transpose(2, 3, 1, 0)
    raise InputError(
        f"state dict entry {name!r} of shape {value.shape} is not in these networks; "
        "use the state dict of a phase 1 or phase 2 checkpoint"
    )


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables to a state dict, the inverse of `to_flax`; kernels are views."""
    return {
        torch_name(path): np.asarray(value).transpose(3, 2, 0, 1)
        if path[-1] == "kernel"
        else np.asarray(value)
        for path, value in flatten_dict(variables).items()
    }


def torch_shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of `to_torch(variables)`; the leaves only need a `shape`."""
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(0, leaf.shape), variables)  # no memory
    return {name: array.shape for name, array in to_torch(zeros).items()}


def torch_name(path: tuple[str, ...]) -> str:
    """Returns PyTorch's name of a leaf of the variables; `path` starts with its collection."""
    _, *modules, leaf = path
    leaf = {"kernel": "weight", "scale": "weight", **_STATISTICS_TO_TORCH}.get(leaf, leaf)
    return ".".join([*map(_module_to_torch, modules), leaf])


def _module_to_torch(name: str) -> str:
    if _RESNET38_BLOCK.fullmatch(name):
        return name
    return _INDEXED.sub(r"\1.\2", name)
