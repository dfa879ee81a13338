"""What the training loop asks of a method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from wsss_jax.errors import InputError

Variables = Mapping[str, Any]
DeviceBatch = Mapping[str, jax.Array]  # a batch, or a share of one, where it is computed with
# (variables, batch, totals, values, rng) -> (loss, (batch_stats, metrics)). Of a part of the global
# batch, divided by the totals of all of it, loss and metrics are shares that add up to its means.
LossFunction = Callable[
    [Variables, DeviceBatch, Mapping[str, jax.Array], Mapping[str, jax.Array], jax.Array],
    tuple[jax.Array, tuple[Variables, Mapping[str, jax.Array]]],
]
# (key of the step, batch) -> the batch that totals and loss are computed of
Prepare = Callable[[jax.Array, DeviceBatch], DeviceBatch]
Validate = Callable[[Variables], dict[str, Any]]


class Collapse(NamedTuple):
    """How a network can die while its loss stays finite.

    Attributes:
      is_collapsed: (metrics of a step, its values) -> () bool, whether the step looks like it.
      steps: in a row that look like it before the network counts as dead.
      text: what has happened, for the message.
    """

    is_collapsed: Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], jax.Array]
    steps: int
    text: str


class Task(NamedTuple):
    """What is trained, and how.

    Attributes:
      network: called as `network(images, train=...)`.
      totals: batch -> what the loss is divided by; adds up over the parts of a batch.
      loss: what is minimized.
      metrics: names of the figures that are logged, "loss" among them; the loss returns these and
        what else `collapse` looks at.
      values: (epoch, step over all epochs) -> the scalars that the loss gets then, such as mu.
      optimizer: changes the trained parameters.
      learning_rate: step -> rate, to be logged.
      is_trained: path of a parameter, names from the module down -> whether it is trained.
      parts: that a replica computes its share of a batch in, one after the other.
      rematerialize: computes what the backward pass needs a second time instead of keeping it.
      ema_decay: of the moving averages of the variables; 0 keeps none. The training loop sets it.
      prepare: changes a replica's share of a batch before its totals are counted, as rotations do,
        which change the number of labeled pixels; None leaves it.
      collapse: how the network can die, if the method knows of a way.
      remedies: settings of the method that help when training fails, as on the command line.
    """

    network: nn.Module
    totals: Callable[[DeviceBatch], dict[str, jax.Array]]
    loss: LossFunction
    metrics: Sequence[str]
    values: Callable[[int, int], dict[str, float]]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    is_trained: Callable[[tuple[str, ...]], bool]
    parts: int = 1
    rematerialize: bool = False
    ema_decay: float = 0.0
    prepare: Prepare | None = None
    collapse: Collapse | None = None
    remedies: Sequence[str] = ()


def check_whole_batches(accumulate: int) -> None:
    """Refuses parts of batches where BatchNorm is trained.

    Raises:
      InputError: `config.accumulate` is over 1.
    """
    if accumulate > 1:
        raise InputError(
            f"config.accumulate is {accumulate} but BatchNorm is trained, whose statistics are of "
            "the whole batch: set --config.accumulate=1 and, to save memory, "
            "--config.rematerialize=True"
        )
