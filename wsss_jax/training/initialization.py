"""What training starts from: random weights, a file of weights, or an earlier run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from wsss_jax import config as config_lib
from wsss_jax import runs
from wsss_jax.checkpoints import load_variables
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_names, weights
from wsss_jax.methods.contract import find_weights
from wsss_jax.state import initialize, network_shapes
from wsss_jax.training import history


def initialize_variables(
    config: ml_collections.ConfigDict, network: nn.Module
) -> tuple[dict[str, Any], weights.Report | None]:
    """Takes the variables from the file or the run `config.init`, or draws them for "".

    With `config.strict` False, what does not fit stays random.

    Returns:
      The variables, and what became of each tensor of the file.

    Raises:
      InputError: no such file or run of the same job, or one that does not fit.
    """
    if not config.init:
        tqdm.write("config.init is empty: starting from random weights, all layers trained")
        return unflatten_dict(_draw(config, network, lambda path: True)), None
    return fill_variables(config, network, read_weights(config.init, "init", config.job))


def fill_variables(
    config: ml_collections.ConfigDict, network: nn.Module, source: weights.Weights
) -> tuple[dict[str, Any], weights.Report]:
    """Fills the variables of a network with weights; returns, errors as `initialize_variables`."""
    job = weights.find_method(source)
    if job not in find_weights(config.job):
        raise InputError(f"{source.path}: these are weights of {job}: name some of {config.job}")

    def draw(names: Sequence[str]) -> dict[str, np.ndarray]:
        drawn = _draw(config, network, lambda path: torch_names.torch_name(path) in names)
        return torch_names.to_torch(unflatten_dict(drawn))

    shapes = torch_names.torch_shapes(network_shapes(network))
    remedy = (
        "set the data set and the model's fields as they were in training, or take what fits with "
        "--config.strict=False"
    )
    variables, report = weights.fit(source, shapes, draw, strict=config.strict, remedy=remedy)
    tqdm.write(weights.summarize(report))
    return variables, report


def read_weights(path: str, field: str, job: str) -> weights.Weights:
    """Reads weights of a file, or of a run, which the configuration names in `field`.

    The run is one of the job, or of another with the same network.
    """
    if not (Path(path) / config_lib.CONFIG_FILE).is_file():
        return weights.read(Path(path))
    earlier, _ = runs.load(path, field, find_weights(job))
    variables = load_variables(Path(path), history.selecting_score(earlier))
    arrays = torch_names.to_torch(variables)
    missing = () if earlier.job == job else (weights.SECOND_CLASSIFIER,)
    return weights.Weights(Path(path), f"a run of {earlier.job}", arrays, missing)


def _draw(
    config: ml_collections.ConfigDict,
    network: nn.Module,
    is_chosen: Callable[[tuple[str, ...]], bool],
) -> dict[tuple[str, ...], jax.Array]:
    """Draws initial values of the chosen leaves, by path; only they are computed."""

    def draw(rng: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        flat = flatten_dict(initialize(network, rng))
        return {path: value for path, value in flat.items() if is_chosen(path)}

    # The default generator compiles again for every parameter: 23 s against 6 s for ResNet38.
    return jax.jit(draw)(jax.random.key(config.seed, impl="rbg"))
