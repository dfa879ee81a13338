"""The result of a finished run, for the jobs after it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import methods, runs
from wsss_jax.checkpoints import load_variables
from wsss_jax.errors import InputError
from wsss_jax.methods.prediction import Prediction
from wsss_jax.state import network_shapes
from wsss_jax.training import history


class Trained(NamedTuple):
    """A trained network of any method."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    network: nn.Module
    variables: dict[str, Any]

    @property
    def method(self) -> methods.Method:
        """The method by which it was trained."""
        return methods.load(self.config.job)

    def predict(self, variables: Mapping[str, Any], image: jax.Array) -> Prediction:
        """Predicts with images (B, H, W, 3) uint8; a pure function of the variables, to be mapped.

        `methods.prediction.bind` maps it over the devices with the variables bound.
        """
        return self.method.predict(self.config, self.network, variables, image)


def load_trained(workdir: str, field: str, gives: str, precision: str = "") -> Trained:
    """Loads a run: its best checkpoint or its last, as its configuration says.

    Args:
      workdir: the run's folder, which the configuration names in `field`.
      field: for the message.
      gives: what its method must give, of `methods.Method.GIVES`; "" = anything.
      precision: what it computes in; "" = what it was trained in.

    Raises:
      InputError: no such run there, or no checkpoint.
    """
    config, dataset = runs.load(workdir, field, methods.find_giving(gives))
    config = config_lib.replace(config, precision=precision or config.precision)
    network = methods.load(config.job).build_network(config, dataset.num_classes)
    score = history.selecting_score(config)
    variables = load_variables(Path(workdir), score, network_shapes(network))
    try:
        epochs = history.load(Path(workdir))
    except InputError as error:
        tqdm.write(f"{error}; how long it was trained is not known")
    else:
        # A converted file of weights has no history.
        if epochs is not None and len(epochs) < config.epochs:
            tqdm.write(f"{workdir}: trained for {len(epochs)} of {config.epochs} epochs so far")
    return Trained(config, dataset, network, variables)
