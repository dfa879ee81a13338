"""Trained runs, and predictors made of them, for the jobs after training."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import parallel, runs, symmetries
from wsss_jax.checkpoints import list_steps, load_variables
from wsss_jax.errors import InputError
from wsss_jax.methods import arithmetic
from wsss_jax.methods.averaging import average_predictions
from wsss_jax.methods.contract import Method, find_giving, load_method
from wsss_jax.methods.prediction import Prediction
from wsss_jax.models import folding
from wsss_jax.sources import Batch
from wsss_jax.state import network_shapes
from wsss_jax.training import calibration, history
from wsss_jax.training.task import DeviceBatch


class Trained(NamedTuple):
    """A trained network of any method.

    Attributes:
      config, dataset, network, variables: of its run.
      tta: the symmetries over which its predictions are averaged, see `symmetries.average`.
    """

    config: ml_collections.ConfigDict
    dataset: Dataset
    network: nn.Module
    variables: dict[str, Any]
    tta: str = "none"

    @property
    def method(self) -> Method:
        """The method by which it was trained."""
        return load_method(self.config.job)

    def fold(self) -> "Trained":
        """Folds normalizations into convolutions: the same predictions within rounding, faster."""
        pairs = getattr(self.network, "FOLDED", {})
        if not pairs:
            return self
        fold = jax.jit(partial(folding.fold, pairs=pairs))  # where the variables are
        return self._replace(variables=fold(self.variables))

    def sum_weights(self) -> int:
        """Computes the CRC-32 of its variables, by which later jobs know them."""
        checksum = 0
        for leaf in jax.tree.leaves(self.variables):
            checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
        return checksum

    def describe_activations(self) -> str:
        """Describes what its activation maps are made with, in lines by which masks know it."""
        text = f"CRC-32 of the weights: {self.sum_weights():08x}\n"
        for field in getattr(self.method, "ACTIVATION_FIELDS", ()):
            text += f"{field}: {config_lib.get(self.config, field)}\n"
        return text

    def predict(self, variables: Mapping[str, Any], image: jax.Array) -> Prediction:
        """Predicts with images (B, H, W, 3) uint8; a pure function of the variables, to be mapped.

        `bind` maps it over the devices with the variables bound.
        """
        method = self.method

        def predict(image: jax.Array) -> Prediction:
            return method.predict(self.config, self.network, variables, image)

        def label(prediction: Prediction) -> jax.Array:
            return method.label_activations(self.config, prediction, image)

        return average_predictions(predict, label, image, self.tta)

    def pool_features(self, variables: Mapping[str, Any], image: jax.Array) -> jax.Array:
        """Computes the pooled features (B, D) of images, of variables as `predict`."""
        return self.method.pool_features(self.config, self.network, variables, image)

    @property
    def gives_probabilities(self) -> bool:
        """Whether `compute_probabilities` has what it needs."""
        return "logits" in self.method.GIVES or hasattr(self.method, "share_activations")

    def compute_probabilities(self, prediction: Prediction, size: Sequence[int]) -> jax.Array:
        """Computes the class probabilities (B, *size, C) of each pixel of a prediction."""
        if prediction.logits is not None:
            return jax.nn.softmax(prediction.logits)
        return self.method.share_activations(self.config, prediction, size)

    def open_layers(
        self, variables: Mapping[str, Any], image: jax.Array, layers: Sequence[str]
    ) -> dict[str, jax.Array]:
        """Computes activation maps (B, C, h, w) by layer, of images and variables as `predict`."""

        def open_once(image: jax.Array) -> dict[str, jax.Array]:
            return self.method.open_layers(
                self.config, self.network, variables, image, tuple(layers)
            )

        return dict(symmetries.average(open_once, image, self.tta, dict.fromkeys(layers, 2)))


def load_trained(
    workdir: str, field: str, gives: str, precision: str = "", tta: str = "none"
) -> Trained:
    """Loads a run: its best checkpoint or its last, as its configuration says.

    Args:
      workdir: the run's folder, which the configuration names in `field`.
      field: for the message.
      gives: what its method must give, of `contract.Method.GIVES`; "" = anything.
      precision: what it computes in; "" = what it was trained in.
      tta: see `Trained`.

    Raises:
      InputError: no such run there, no checkpoint, or no calibration of a method that has one.
    """
    config, dataset = runs.load(workdir, field, find_giving(gives))
    config = arithmetic.set_precision(config, precision)
    network = load_method(config.job).build_network(config, dataset.num_classes)
    score = history.selecting_score(config)
    try:
        epochs = history.load(Path(workdir))
    except InputError as error:
        tqdm.write(f"{error}; how long it was trained is not known")
    else:
        # A converted file of weights has no history; a run that can go back saves its step 0.
        if epochs == [] and list_steps(Path(workdir)) == [0]:
            raise InputError(f"{workdir}: not trained yet; train that phase first")
        planned = history.count_epochs(config)
        if epochs is not None and len(epochs) < planned:
            tqdm.write(f"{workdir}: trained for {len(epochs)} of {planned} epochs so far")
    variables = load_variables(Path(workdir), score, network_shapes(network))
    config = calibration.take_up(config, Path(workdir), dataset.num_classes)
    network = load_method(config.job).build_network(config, dataset.num_classes)  # checks it
    return Trained(config, dataset, network, variables, tta)


def bind(
    trained: Mapping[str, Trained],
    combine: Callable[[dict[str, Prediction], DeviceBatch], Any],
    *,
    wait: bool = True,
) -> Callable[[Batch], Any]:
    """Makes a predictor of trained networks: one program on the local devices, variables bound.

    Args:
      trained: by name.
      combine: (predictions by the names of `trained`, batch) -> arrays (B, ...), traced by JAX; of
        what it does not use, nothing is computed.
      wait: see `parallel.map_batch`.

    Returns:
      batch -> what `combine` returns, as NumPy arrays.
    """

    def predict(variables: Mapping[str, Any], batch: DeviceBatch) -> Any:
        predictions = {
            name: each.predict(variables[name], batch["image"]) for name, each in trained.items()
        }
        return combine(predictions, batch)

    variables = {name: each.variables for name, each in trained.items()}
    return partial(parallel.map_batch(predict, wait=wait), variables)
