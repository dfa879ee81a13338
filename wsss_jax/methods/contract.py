"""What the jobs ask of a method."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from data.dataset import Dataset
from wsss_jax.config_rules import Rule
from wsss_jax.methods import METHODS
from wsss_jax.methods.prediction import Prediction
from wsss_jax.training.task import Task, Variables


class Method(Protocol):
    """What the jobs ask of a method; a module is one.

    A method with figures that follow from data is a `Measuring` or a `Calibrating` one, too.

    Attributes:
      TITLE: what tables call it.
      FIELDS: of its configuration, with the values that each may have.
      GIVES: what its predictions hold besides label maps, of "presence" and "logits" (see
        `prediction.Prediction`), "activations" where it can be opened into pseudo masks, and
        "features" where patches can be clustered by them.
      LAYERS: where it can be opened, see `open_layers`; only where "activations" are given.
      WEIGHTS: optional, the method with the same network, whose weights it can start from.
      MAP_FIELDS: optional, the fields that only the label maps of its predictions use: they may
        change once its run is trained.
      ACTIVATION_FIELDS: optional, those of them that `open_layers` uses, too.
    """

    TITLE: str
    FIELDS: Mapping[str, Rule]
    GIVES: frozenset[str]
    LAYERS: tuple[str, ...]

    def complete(self, config: ml_collections.ConfigDict, dataset: Dataset) -> None:
        """Fills in place the fields that follow from others or the data set, before training.

        Raises:
          InputError: fields that contradict each other.
        """

    def build_network(
        self, config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
    ) -> nn.Module:
        """Builds the network; `axis_name` is the mapped axis in training, None for prediction."""

    def make_task(
        self, config: ml_collections.ConfigDict, num_classes: int, total_steps: int
    ) -> Task:
        """Says what is trained, and how."""

    def predict(
        self,
        config: ml_collections.ConfigDict,
        network: nn.Module,
        variables: Variables,
        image: jax.Array,
    ) -> Prediction:
        """Predicts with images (B, H, W, 3) uint8; a pure function."""

    def pool_features(
        self,
        config: ml_collections.ConfigDict,
        network: nn.Module,
        variables: Variables,
        image: jax.Array,
    ) -> jax.Array:
        """Computes the pooled features (B, D) float32 of images; only where they are given."""

    def open_layers(
        self,
        config: ml_collections.ConfigDict,
        network: nn.Module,
        variables: Variables,
        image: jax.Array,
        layers: tuple[str, ...],
    ) -> dict[str, jax.Array]:
        """Computes activation maps (B, C, h, w) by layer; only where "activations" are given."""

    def label_activations(
        self, config: ml_collections.ConfigDict, prediction: Prediction, image: jax.Array
    ) -> jax.Array:
        """Makes label maps (B, H, W) uint8 of `prediction.activations` and presence.

        Only of methods whose predictions hold activations, for means over several views of images
        (B, H, W, 3) uint8.
        """

    def share_activations(
        self, config: ml_collections.ConfigDict, prediction: Prediction, size: Sequence[int]
    ) -> jax.Array:
        """Makes probabilities (B, *size, C) float32 of activations and presence, for the CRF.

        The strongest class is that of `label_activations`; 0 for classes that are not predicted.
        Optional: only of methods whose predictions hold activations and no logits, and without it
        `evaluate` refuses the CRF.
        """


@runtime_checkable
class Measuring(Protocol):
    """A method with fields that are measured on the training patches, before training.

    Attributes:
      MEASURED: the fields, such as "model.mean"; () is the value of one to be measured.
    """

    MEASURED: Sequence[str]

    def measure(
        self, config: ml_collections.ConfigDict, counts: np.ndarray, labels: np.ndarray
    ) -> dict[str, Any]:
        """Returns values of the fields `MEASURED`, which `config.json` then holds; a pure function.

        Args:
          config: as the method has completed it.
          counts: (256,) int64, how often each value of 0-255 is in the patches, of all channels.
          labels: (N, C) uint8, of the patches.
        """


@runtime_checkable
class Calibrating(Protocol):
    """A method with fields that follow from its scores of the validation patches.

    Attributes:
      CALIBRATED: the fields, such as "cam.thresholds", each a number for every class; () is the
        value of one to be calibrated.
    """

    CALIBRATED: Sequence[str]

    def calibrate(
        self,
        config: ml_collections.ConfigDict,
        classes: Sequence[str],
        presence: np.ndarray,
        labels: np.ndarray,
    ) -> dict[str, Any]:
        """Returns values of the fields `CALIBRATED`, for the jobs after training.

        What cannot be calibrated gets a value that works, and is said.

        Args:
          config: of the run.
          classes: names of the C classes, for messages.
          presence: (N, C) float32, what the trained network predicts of the validation patches; N
            is 0 where there are none.
          labels: (N, C) uint8, what they have.
        """


def load_method(name: str) -> Method:
    """Loads the module of a method.

    Raises:
      KeyError: there is no such method.
    """
    return cast(Method, importlib.import_module(METHODS[name]))


def find_weights(name: str) -> tuple[str, ...]:
    """Returns the names of the methods whose weights a method can start from: its own first."""
    return tuple(dict.fromkeys((name, getattr(load_method(name), "WEIGHTS", name))))


def find_giving(what: str) -> tuple[str, ...]:
    """Returns the names of the methods that give something, see `Method.GIVES`; "" = all."""
    return tuple(name for name in METHODS if not what or what in load_method(name).GIVES)
