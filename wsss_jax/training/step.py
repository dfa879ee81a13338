"""One step of training, as a pure function of one replica."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from wsss_jax import parallel
from wsss_jax.models.layers import BLOCK_OUTPUT
from wsss_jax.state import State, network_shapes
from wsss_jax.training import divergence
from wsss_jax.training.task import DeviceBatch, Task, Variables


def partition(
    params: Mapping[str, Any], is_trained: Callable[[tuple[str, ...]], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a parameter tree into the trained leaves and the others, both nested."""
    flat = flatten_dict(params)
    return (
        unflatten_dict({k: v for k, v in flat.items() if is_trained(k)}),
        unflatten_dict({k: v for k, v in flat.items() if not is_trained(k)}),
    )


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `partition`."""
    return unflatten_dict({**flatten_dict(one), **flatten_dict(other)})


def compute_gradients(
    task: Task,
    state: State,
    batch: DeviceBatch,
    values: Mapping[str, jax.Array],
    rng: jax.Array,
) -> tuple[dict[str, Any], Variables, dict[str, jax.Array]]:
    """Computes gradients of the global batch; each replica, mapped over `parallel.AXIS`, its share.

    Parameters that are not trained get no gradient, so their layers cost no backward pass unless
    a trained one lies before them.

    Args:
      task: bound before the map.
      state: the same on all replicas, as is what is returned.
      batch: the replica's share of the global batch.
      values: the scalars of this epoch.
      rng: the run's key.

    Returns:
      The gradients of the trained parameters, the new "batch_stats" and the metrics, all of the
      global batch.
    """
    rng = jax.random.fold_in(rng, state.step)
    if task.prepare is not None:
        batch = task.prepare(rng, batch)
    trained, fixed = partition(state.variables["params"], task.is_trained)

    totals = jax.lax.psum(task.totals(batch), parallel.AXIS)

    def loss(trained: Mapping[str, Any], part: DeviceBatch) -> tuple[jax.Array, Any]:
        variables = {**state.variables, "params": merge(trained, fixed)}
        return task.loss(variables, part, totals, values, rng)

    if task.rematerialize:
        kept = jax.checkpoint_policies.save_only_these_names(BLOCK_OUTPUT)
        loss = jax.checkpoint(loss, policy=kept)
    differentiate = partial(jax.grad(loss, has_aux=True), trained)
    if task.parts == 1:
        gradients, (batch_stats, metrics) = differentiate(batch)
    else:  # the statistics are frozen: what comes back of them is what went in

        def compute(part: DeviceBatch) -> tuple[Any, Any]:
            gradients, (_, metrics) = differentiate(part)
            return gradients, metrics

        gradients, metrics = _add_up(compute, batch, task.parts)
        batch_stats = state.variables.get("batch_stats", {})
    gradients, metrics = jax.lax.psum((gradients, dict(metrics)), parallel.AXIS)
    return gradients, batch_stats, metrics


def _add_up(function: Callable[[DeviceBatch], Any], batch: DeviceBatch, parts: int) -> Any:
    """Sums what a function gives for each of the parts, computed one after the other."""
    batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, part: DeviceBatch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, batch)[0]


def apply_gradients(
    task: Task,
    state: State,
    gradients: Mapping[str, Any],
    batch_stats: Variables,
    rate_factor: jax.Array | None = None,
) -> State:
    """Returns the state after an optimizer step with the results of `compute_gradients`.

    A `rate_factor` multiplies the updates, which is the same for every optimizer as a learning rate
    that is multiplied; a power of 2 changes no digit.
    """
    trained, fixed = partition(state.variables["params"], task.is_trained)
    updates, opt_state = task.optimizer.update(gradients, state.opt_state, trained)
    if rate_factor is not None:
        updates = jax.tree.map(lambda update: update * rate_factor, updates)
    params = merge(optax.apply_updates(trained, updates), fixed)
    variables = {**state.variables, "params": params}
    if "batch_stats" in variables:
        variables["batch_stats"] = batch_stats
    return state._replace(step=state.step + 1, variables=variables, opt_state=opt_state)


def train_step(
    task: Task,
    state: State,
    batch: DeviceBatch,
    values: Mapping[str, jax.Array],
    rng: jax.Array,
) -> State:
    """Takes one optimizer step on one replica; arguments as of `compute_gradients`.

    The metrics stay on the device, added up in `state.sums`: "logged" since the last log, "epoch"
    since the epoch began, each with the number of "steps", beside the counts of `divergence.count`.
    They are part of the state, so a run that continues reports to the last bit what it would have
    reported.
    """
    gradients, batch_stats, metrics = compute_gradients(task, state, batch, values, rng)
    shown = {name: metrics[name] for name in task.metrics} | {"steps": jnp.float32(1)}
    sums = {name: jax.tree.map(jnp.add, state.sums[name], shown) for name in ("logged", "epoch")}
    sums |= divergence.count(task, state.sums, state.step, metrics, values)
    rate_factor = values.get(divergence.RATE_FACTOR)
    after = apply_gradients(task, state, gradients, batch_stats, rate_factor)._replace(sums=sums)
    if after.average is None:
        return after
    return after._replace(average=update_average(after, task.ema_decay))


def update_average(state: State, decay: float) -> dict[str, Any]:
    """Returns the exponential moving averages of parameters and BatchNorm statistics after a step.

    average <- average + (1 - d) * (variables - average), which Polyak and Juditsky (1992) show to
    settle where plain steps still swing. d is `decay`, in the first steps (1 + n) / (10 + n) of the
    n taken so far, so that the initial weights are soon forgotten (as TensorFlow's
    `ExponentialMovingAverage` does with `num_updates`).

    Args:
      state: after the step, with the averages before it.
      decay: 0 <= decay < 1.
    """
    steps = state.step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + steps) / (10 + steps))

    def move(average: jax.Array, value: jax.Array) -> jax.Array:
        # In this form what is frozen keeps its value to the last bit.
        return average + rate.astype(average.dtype) * (value - average)

    return jax.tree.map(move, state.average, state.variables)


def zero_sums(task: Task) -> dict[str, Any]:
    """Returns the sums of the metrics before the first step."""
    zeros = dict.fromkeys((*task.metrics, "steps"), np.float32(0))
    return {"logged": zeros, "epoch": dict(zeros), **divergence.zero_counts(task)}


def reset_sums(state: State, sums: Mapping[str, Any]) -> State:
    """Returns the state with some sums in the place of its own, where the mapped steps want it."""
    sums = jax.device_put({**state.sums, **sums}, parallel.local_sharding())
    return state._replace(sums=sums)


def complete_sums(task: Task, state: State) -> State:
    """Returns a restored state with the sums of this task, which another version may not have."""
    sums = {name: state.sums.get(name, zero) for name, zero in zero_sums(task).items()}
    return state._replace(sums=jax.device_put(sums, parallel.local_sharding()))


def make_state(task: Task, variables: dict[str, Any]) -> State:
    """Returns the state before the first step, where the mapped steps want it."""
    return jax.device_put(_make_state(task, variables), parallel.local_sharding())


def _make_state(task: Task, variables: dict[str, Any]) -> State:
    trained, _ = partition(variables["params"], task.is_trained)
    opt_state = task.optimizer.init(trained)
    # A copy: buffers are donated, and one buffer cannot be donated twice.
    average = jax.tree.map(jnp.copy, variables) if task.ema_decay else None
    return State(jnp.zeros((), jnp.int32), variables, opt_state, zero_sums(task), average)


def state_shapes(task: Task) -> State:
    """Returns the shapes of a state, which a checkpoint must have."""
    return jax.eval_shape(partial(_make_state, task), network_shapes(task.network))
