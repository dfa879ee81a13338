"""The state of training."""

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """What training changes; `opt_state` is None for weights that were not trained here.

    `sums` is what the metrics have added up to, see `training.train_step`.

    `step` () int32 counts optimizer steps over all epochs; with the number of steps per epoch it is
    also the position in the input. `variables` holds "params" and, where there is BatchNorm,
    "batch_stats".
    """

    step: jax.Array
    variables: dict[str, Any]
    opt_state: Any
    sums: Any = None
