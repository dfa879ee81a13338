"""The state of training."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

_IMAGE = np.zeros((1, 64, 64, 3), np.float32)  # the parameters do not depend on the size


class State(NamedTuple):
    """What training changes.

    Attributes:
      step: () int32, optimizer steps over all epochs; with the number of steps per epoch it is also
        the position in the input.
      variables: "params" and, where there is BatchNorm, "batch_stats".
      opt_state: of the optimizer; None for weights that were not trained here.
      sums: what the metrics have added up to, see `training.step.train_step`.
      average: exponential moving averages of the variables, see `training.step.update_average`;
        None without.
    """

    step: jax.Array
    variables: dict[str, Any]
    opt_state: Any
    sums: Any = None
    average: dict[str, Any] | None = None

    @property
    def result(self) -> dict[str, Any]:
        """The variables that a run gives: the averages, where it keeps any."""
        return self.variables if self.average is None else self.average


def initialize(network: nn.Module, rng: jax.Array) -> dict[str, Any]:
    """Draws the variables of a network."""
    return network.init(rng, _IMAGE, train=False)


def network_shapes(network: nn.Module) -> dict[str, Any]:
    """Returns the variables of a network as shapes and dtypes."""
    return jax.eval_shape(partial(initialize, network), jax.random.key(0))
