"""The state of training."""

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: () int32, optimizer steps over all epochs; with the number of steps per epoch it is also
        the position in the input.
      variables: "params" and, with BatchNorm, "batch_stats".
      opt_state: of the optimizer; None for weights that were not trained here.
      sums: of the metrics, see `training.train_step`.
    """

    step: jax.Array
    variables: dict[str, Any]
    opt_state: Any
    sums: Any = None
