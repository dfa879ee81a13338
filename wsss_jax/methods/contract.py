"""What the jobs ask of a method."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import flax.linen as nn
import jax
import ml_collections

from wsss_jax.config_rules import Rule
from wsss_jax.methods import METHODS
from wsss_jax.methods.prediction import Prediction
from wsss_jax.training.task import Task, Variables


class Method(Protocol):
    """What the jobs ask of a method; a module is one.

    Attributes:
      TITLE: what tables call it.
      FIELDS: of its configuration, with the values that each may have.
      GIVES: what its predictions hold besides label maps, of "presence" and "logits" (see
        `prediction.Prediction`), and "activations" where Grad-CAM can open it into pseudo masks.
    """

    TITLE: str
    FIELDS: Mapping[str, Rule]
    GIVES: frozenset[str]

    def complete(self, config: ml_collections.ConfigDict) -> None:
        """Fills in place the fields that follow from others, before training.

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
        self, config: ml_collections.ConfigDict, prediction: Prediction, size: Sequence[int]
    ) -> jax.Array:
        """Makes label maps (B, *size) uint8 of `prediction.activations` and presence.

        Only of methods whose predictions hold activations, for means over several views of an
        image.
        """

    def share_activations(
        self, config: ml_collections.ConfigDict, prediction: Prediction, size: Sequence[int]
    ) -> jax.Array:
        """Makes probabilities (B, *size, C) float32 of activations and presence, for the CRF.

        The strongest class is that of `label_activations`; 0 for classes that are not predicted.
        Optional: only of methods whose predictions hold activations and no logits, and without it
        `evaluate` refuses the CRF.
        """


def load_method(name: str) -> Method:
    """Loads the module of a method.

    Raises:
      KeyError: there is no such method.
    """
    return cast(Method, importlib.import_module(METHODS[name]))


def find_giving(what: str) -> tuple[str, ...]:
    """Returns the names of the methods that give something, see `Method.GIVES`; "" = all."""
    return tuple(name for name in METHODS if not what or what in load_method(name).GIVES)
