"""Schedules of Progressive Dropout Attention and of learning rates."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from wsss_jax.errors import InputError


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


def attention_share(steps: int, warm_up: int) -> float:
    """Returns how much of the attention is in force while it is warmed up, see `mix_attention`.

    Args:
      steps: taken with the attention on; 0 or less before it is.
      warm_up: steps in which the share rises in a line from 0 to 1, at least 1.
    """
    return min(max(steps / warm_up, 0.0), 1.0)


def polynomial(base: float, total_steps: int, power: float) -> optax.Schedule:
    """Returns the schedule base * (1 - t / total_steps) ** power of step t, from 0."""

    def rate(step: jax.Array) -> jax.Array:
        # As a float of JAX's default width: an int32 divided is float32, also in float64.
        left = 1.0 - jnp.minimum(step, total_steps).astype(float) / total_steps
        return base * left**power

    return rate


def cosine(base: float, total_steps: int) -> optax.Schedule:
    """Returns the schedule base * (1 + cos(pi * t / total_steps)) / 2 of step t, from 0.

    Loshchilov & Hutter 2017 (SGDR, Eq. 5), without restarts.
    """

    def rate(step: jax.Array) -> jax.Array:
        done = jnp.minimum(step, total_steps).astype(float) / total_steps
        return base * (0.5 * (1.0 + jnp.cos(jnp.pi * done)))

    return rate


def staged(rate: optax.Schedule, total_steps: int, stages: int, factor: float) -> optax.Schedule:
    """Multiplies a schedule by `factor` at the end of each of `stages` equal parts of the run."""
    # Whole numbers: where a stage ends does not depend on rounding.
    ends = jnp.asarray([-(-total_steps * stage // stages) for stage in range(1, stages)], jnp.int32)

    def in_stages(step: jax.Array) -> jax.Array:
        return rate(step) * float(factor) ** (step >= ends).sum().astype(float)

    return in_stages


def triangular(base: float, peak: float, total_steps: int, half_cycles: int) -> optax.Schedule:
    """Returns a schedule that goes from `base` to `peak` and back in lines, again and again.

    Smith 2017 (Cyclical Learning Rates): the run has `half_cycles` such lines of equal length.
    """

    def rate(step: jax.Array) -> jax.Array:
        lines = jnp.minimum(step, total_steps).astype(float) * (half_cycles / max(total_steps, 1))
        return base + (peak - base) * (1.0 - jnp.abs(1.0 - lines % 2.0))

    return rate


def warm_up(rate: optax.Schedule, steps: int) -> optax.Schedule:
    """Lets a schedule rise in a line: step t of the first `steps` has the share (t + 1) / steps.

    No step is without effect, and the last of them has the whole rate (Goyal et al. 2017).
    """

    def warmed(step: jax.Array) -> jax.Array:
        return rate(step) * (jnp.minimum(step + 1, steps).astype(float) / steps)

    return warmed


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
    `head_multiplier` times as fast, biases `bias_multiplier` times. All decay as
    `optimizer.decay` says, after the first `optimizer.warm_up` steps have brought them up:
    "polynomial", "cosine", "staged" (multiplied by `stage_factor` after each of `stages` parts of
    the run) or "triangular" (up to `peak_factor` times the rate and back, in `half_cycles` lines,
    and staged as well).

    Raises:
      InputError: the run is not longer than the warm-up.
    """
    if 0 < total_steps <= optimizer.warm_up:  # of a run that has steps at all
        fewer = f"{total_steps // 10}, or 0 for none" if total_steps >= 10 else "0"
        raise InputError(
            f"config.optimizer.warm_up is {optimizer.warm_up} steps but the whole run takes "
            f"{total_steps}: set --config.optimizer.warm_up={fewer}"
        )

    def schedule(base: float) -> optax.Schedule:
        if optimizer.decay == "cosine":
            rate = cosine(base, total_steps)
        elif optimizer.decay == "polynomial":
            rate = polynomial(base, total_steps, optimizer.power)
        else:
            rate = optax.constant_schedule(base)
            if optimizer.decay == "triangular":
                peak = base * optimizer.peak_factor
                rate = triangular(base, peak, total_steps, optimizer.half_cycles)
            rate = staged(rate, total_steps, optimizer.stages, optimizer.stage_factor)
        return warm_up(rate, optimizer.warm_up) if optimizer.warm_up else rate

    head, bias = optimizer.head_multiplier, optimizer.bias_multiplier
    factors = {"weight": 1.0, "bias": bias, "head_weight": head, "head_bias": head * bias}
    return {group: schedule(optimizer.learning_rate * factor) for group, factor in factors.items()}
