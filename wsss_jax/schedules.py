"""Schedules of Progressive Dropout Attention and of learning rates, and the optimizer."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax


def mu(epoch: int, pda: ml_collections.ConfigDict) -> float:
    """Returns the coefficient of Progressive Dropout Attention in an epoch (Eq. 11).

    Args:
      epoch: from 0.
      pda: the fields `config.pda`. Progressive: mu is 1 in the first `hold_epochs` epochs and is
        then multiplied by `decay` in each epoch, until it is not above `floor`; there it stays, at
        `floor` itself with `clip` (paper), else at the value it has (released code).

    Returns:
      mu in (0, 1], or 0 if the attention is off.
    """
    if pda.schedule == "off" or epoch < pda.off_epochs:
        return 0.0
    if pda.schedule == "constant":
        return float(pda.constant)
    value = 1.0
    for _ in range(epoch - pda.hold_epochs + 1):
        if value <= pda.floor:
            break
        value *= pda.decay
    return max(value, pda.floor) if pda.clip else value


def polynomial(base: float, total_steps: int, power: float) -> optax.Schedule:
    """Returns the schedule base * (1 - t / total_steps) ** power of step t, from 0."""

    def rate(step: jax.Array) -> jax.Array:
        # As a float of JAX's default width: an int32 divided is float32, also in float64.
        left = 1.0 - jnp.minimum(step, total_steps).astype(float) / total_steps
        return base * left**power

    return rate


def scale_learning_rate(
    optimizer: ml_collections.ConfigDict, batch_size: int
) -> ml_collections.ConfigDict:
    """Scales the learning rate of the fields `config.optimizer` to a batch size.

    With `optimizer.base_batch_size`, the learning rate is for batches of that size and grows in
    proportion (Goyal et al. 2017).
    """
    scaled = ml_collections.ConfigDict(optimizer)  # one that is not frozen
    if optimizer.base_batch_size:
        scaled.learning_rate = optimizer.learning_rate * batch_size / optimizer.base_batch_size
    return scaled


def learning_rates(
    optimizer: ml_collections.ConfigDict, total_steps: int
) -> dict[str, optax.Schedule]:
    """Returns the learning rate schedule of each parameter group.

    The groups are `weight`, `bias`, `head_weight` and `head_bias`. New layers (the head) learn
    `head_multiplier` times as fast, biases `bias_multiplier` times.
    """
    head, bias = optimizer.head_multiplier, optimizer.bias_multiplier
    factors = {"weight": 1.0, "bias": bias, "head_weight": head, "head_bias": head * bias}
    return {
        group: polynomial(optimizer.learning_rate * factor, total_steps, optimizer.power)
        for group, factor in factors.items()
    }


def sgd(
    optimizer: ml_collections.ConfigDict, total_steps: int, head_modules: tuple[str, ...]
) -> optax.GradientTransformation:
    """Builds SGD as PyTorch defines it, with the parameter groups of `learning_rates`.

    g <- g + weight_decay * p;  v <- momentum * v + g;  p <- p - rate * v.

    Args:
      optimizer: the fields `config.optimizer`.
      total_steps: length of the polynomial decay.
      head_modules: top-level modules of the parameter tree that are new layers.
    """

    def labels(params: Mapping[str, Any]) -> Any:
        flat = flax.traverse_util.flatten_dict(params)
        return flax.traverse_util.unflatten_dict(
            {
                path: ("head_" if path[0] in head_modules else "")
                + ("bias" if path[-1] == "bias" else "weight")
                for path in flat
            }
        )

    def group(name: str, rate: optax.Schedule) -> optax.GradientTransformation:
        decays = optimizer.decay_biases or not name.endswith("bias")
        return optax.chain(
            optax.add_decayed_weights(optimizer.weight_decay if decays else 0.0),
            optax.trace(optimizer.momentum),
            optax.scale_by_learning_rate(rate),
        )

    rates = learning_rates(optimizer, total_steps)
    return optax.multi_transform({name: group(name, rate) for name, rate in rates.items()}, labels)
