"""The one training loop of both phases: epochs, metrics, checkpoints, resume."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from clu import parameter_overview
from flax.traverse_util import flatten_dict, unflatten_dict
from tensorboardX import SummaryWriter
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import inputs, parallel, patch_records, runs, sources
from wsss_jax.checkpoints import Checkpoints, State, has_checkpoint, load_variables
from wsss_jax.errors import InputError, Preempted
from wsss_jax.files import atomic_path
from wsss_jax.interop import torch_names, weights
from wsss_jax.models.layers import BLOCK_OUTPUT
from wsss_jax.progress import catch_termination, show_progress

SCORE = "miou"  # the figure of the validation by which the best checkpoint is kept
HISTORY_FILE = "history.json"
_NAMED = 20  # patches that a message names
_IMAGE = np.zeros((1, 64, 64, 3), np.float32)  # the parameters do not depend on the size

Variables = Mapping[str, Any]
# (variables, batch, totals, values, rng) -> (loss, (batch_stats, metrics)). Of a part of the global
# batch, divided by the totals of all of it, loss and metrics are shares that add up to its means.
LossFunction = Callable[
    [Variables, sources.Batch, Mapping[str, jax.Array], Mapping[str, jax.Array], jax.Array],
    tuple[jax.Array, tuple[Variables, Mapping[str, jax.Array]]],
]
Validate = Callable[[Variables], dict[str, Any]]


class Phase(NamedTuple):
    """What the loop needs to know of a phase.

    `model` is called as `model(images, train=...)`; `loss` is what is minimized, divided by the
    `totals(batch)`, which add up over the parts of a batch; `optimizer` changes the parameters for
    which `is_trainable(path)` holds, `path` being the names from the module down;
    `learning_rate(step)` is logged; `metrics` are the names of those that the loss returns, "loss"
    among them; `values(epoch)` are the scalars that the loss gets in an epoch;
    `validate(variables)` gives figures, None goes without validation. A replica computes its share
    of a batch in `parts`, one after the other, and with `rematerialize` computes what the backward
    pass needs a second time instead of keeping it.
    """

    model: nn.Module
    totals: Callable[[sources.Batch], dict[str, jax.Array]]
    loss: LossFunction
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    is_trainable: Callable[[tuple[str, ...]], bool]
    metrics: Sequence[str]
    values: Callable[[int], dict[str, float]]
    validate: Validate | None
    parts: int = 1
    rematerialize: bool = False


def partition(
    params: Mapping[str, Any], is_trainable: Callable[[tuple[str, ...]], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a parameter tree into the trainable leaves and the others, both nested."""
    flat = flatten_dict(params)
    return (
        unflatten_dict({k: v for k, v in flat.items() if is_trainable(k)}),
        unflatten_dict({k: v for k, v in flat.items() if not is_trainable(k)}),
    )


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `partition`."""
    return unflatten_dict({**flatten_dict(one), **flatten_dict(other)})


def compute_gradients(
    phase: Phase,
    state: State,
    batch: sources.Batch,
    values: Mapping[str, jax.Array],
    rng: jax.Array,
) -> tuple[dict[str, Any], Variables, dict[str, jax.Array]]:
    """What one replica, inside a map over `parallel.AXIS`, finds on its share of a batch.

    Parameters that are not trained get no gradient, so their layers cost no backward pass unless
    a trained one lies before them.

    Args:
      phase: bound before the map.
      state: the same on all replicas, as is what is returned.
      batch: the replica's share of the global batch.
      values: the scalars of this epoch.
      rng: the run's key.

    Returns:
      The gradients of the trained parameters, the new "batch_stats" and the metrics, all of the
      global batch.
    """
    rng = jax.random.fold_in(rng, state.step)
    trained, fixed = partition(state.variables["params"], phase.is_trainable)

    totals = jax.lax.psum(phase.totals(batch), parallel.AXIS)

    def loss(trained: Mapping[str, Any], part: sources.Batch) -> tuple[jax.Array, Any]:
        variables = {**state.variables, "params": merge(trained, fixed)}
        return phase.loss(variables, part, totals, values, rng)

    if phase.rematerialize:
        kept = jax.checkpoint_policies.save_only_these_names(BLOCK_OUTPUT)
        loss = jax.checkpoint(loss, policy=kept)
    differentiate = partial(jax.grad(loss, has_aux=True), trained)
    if phase.parts == 1:
        found, (batch_stats, metrics) = differentiate(batch)
    else:  # the statistics are frozen: what comes back of them is what went in

        def gradients_and_metrics(part: sources.Batch) -> tuple[Any, Any]:
            found, (_, metrics) = differentiate(part)
            return found, metrics

        found, metrics = _added_up(gradients_and_metrics, batch, phase.parts)
        batch_stats = state.variables["batch_stats"]
    found, metrics = jax.lax.psum((found, dict(metrics)), parallel.AXIS)
    return found, batch_stats, metrics


def _added_up(function: Callable[[sources.Batch], Any], batch: sources.Batch, parts: int) -> Any:
    """The sum of what a function gives for each of the parts, computed one after the other."""
    batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, part: sources.Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, batch)[0]


def apply_gradients(
    phase: Phase, state: State, gradients: Mapping[str, Any], batch_stats: Variables
) -> State:
    """The state after an optimizer step with what `compute_gradients` found."""
    trained, fixed = partition(state.variables["params"], phase.is_trainable)
    updates, opt_state = phase.optimizer.update(gradients, state.opt_state, trained)
    params = merge(optax.apply_updates(trained, updates), fixed)
    variables = {**state.variables, "params": params, "batch_stats": batch_stats}
    return state._replace(step=state.step + 1, variables=variables, opt_state=opt_state)


def train_step(
    phase: Phase,
    state: State,
    batch: sources.Batch,
    values: Mapping[str, jax.Array],
    rng: jax.Array,
) -> State:
    """One optimizer step of one replica; arguments as of `compute_gradients`.

    The metrics stay on the device, added up in `state.sums`: "logged" since the last log, "epoch"
    since the epoch began, each with the number of "steps", and "not_finite", the first step whose
    loss was not finite, or -1. They are part of the state, so a run that goes on from a checkpoint
    reports to the last bit what it would have reported.
    """
    found, batch_stats, metrics = compute_gradients(phase, state, batch, values, rng)
    sums = {
        name: jax.tree.map(jnp.add, state.sums[name], {**metrics, "steps": jnp.float32(1)})
        for name in ("logged", "epoch")
    }
    fine = jnp.isfinite(metrics["loss"]) | (state.sums["not_finite"] >= 0)
    sums["not_finite"] = jnp.where(fine, state.sums["not_finite"], state.step)
    return apply_gradients(phase, state, found, batch_stats)._replace(sums=sums)


def _zero_sums(phase: Phase) -> dict[str, Any]:
    zeros = dict.fromkeys((*phase.metrics, "steps"), np.float32(0))
    return {"logged": zeros, "epoch": dict(zeros), "not_finite": np.int32(-1)}


def initial_variables(
    config: ml_collections.ConfigDict, model: nn.Module
) -> tuple[dict[str, Any], weights.Report | None]:
    """What training starts from: the file or the run `config.init`, or random weights for "".

    With `config.strict` False, what does not fit stays random.

    Raises:
      InputError: no such file or run of the same job, or one that does not fit.
    """
    if not config.init:
        tqdm.write("config.init is empty: starting from random weights, all layers trained")
        return unflatten_dict(_random(config, model, lambda path: True)), None
    return filled_variables(config, model, read_weights(config.init, "init", config.job))


def filled_variables(
    config: ml_collections.ConfigDict, model: nn.Module, source: weights.Weights
) -> tuple[dict[str, Any], weights.Report]:
    """The variables of a model filled with weights, and what became of each tensor."""
    phase = f"phase{weights.phase_of(source)}"
    if phase != config.job:
        raise InputError(f"{source.path}: these are weights of {phase}: name some of {config.job}")

    def random(names: Sequence[str]) -> dict[str, np.ndarray]:
        chosen = _random(config, model, lambda path: torch_names.torch_name(path) in names)
        return torch_names.to_torch(unflatten_dict(chosen))

    shapes = torch_names.torch_shapes(network_shapes(model))
    remedy = (
        "set the data set and the model's fields as they were in training, or take what fits with "
        "--config.strict=False"
    )
    variables, report = weights.fit(source, shapes, random, strict=config.strict, remedy=remedy)
    tqdm.write(weights.summary(report))
    return variables, report


def read_weights(path: str, field: str, job: str) -> weights.Weights:
    """Weights of a file, or of a run of the job, which the configuration names in `field`."""
    if not (Path(path) / config_lib.CONFIG_FILE).is_file():
        return weights.read(Path(path))
    earlier, _ = runs.load(path, field, job)
    arrays = torch_names.to_torch(load_variables(Path(path), _score(earlier)))
    return weights.Weights(Path(path), f"a run of {job}", arrays)


def _random(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    is_chosen: Callable[[tuple[str, ...]], bool],
) -> dict[tuple[str, ...], jax.Array]:
    """Random initial values of the chosen leaves, by path; only they are computed."""

    def init(rng: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        flat = flatten_dict(model.init(rng, _IMAGE, train=False))
        return {path: value for path, value in flat.items() if is_chosen(path)}

    # The default generator compiles anew for every parameter: 23 s against 6 s for ResNet38.
    return jax.jit(init)(jax.random.key(config.seed, impl="rbg"))


def _score(config: ml_collections.ConfigDict) -> str | None:
    return SCORE if config.select == "best" else None


def network_shapes(model: nn.Module) -> dict[str, Any]:
    """The variables of a network as shapes and dtypes."""
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), _IMAGE)


class Trained(NamedTuple):
    """A trained phase."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    model: nn.Module
    variables: dict[str, Any]


def load(workdir: str, field: str, job: str, build_model: Callable, precision: str = "") -> Trained:
    """The result of a run: its best checkpoint or its last, as its configuration says.

    Args:
      workdir: the run's folder, which the configuration names in `field`.
      field: for the message.
      job: what the run must have been.
      build_model: of that phase.
      precision: what it computes in; "" = what it was trained in.

    Raises:
      InputError: no such run there, or no checkpoint.
    """
    config, dataset = runs.load(workdir, field, job)
    config.precision = precision or config.precision
    model = build_model(config, dataset.num_classes)
    variables = load_variables(Path(workdir), _score(config), network_shapes(model))
    path = Path(workdir) / HISTORY_FILE
    if path.is_file():  # a converted file of weights has none
        try:
            epochs = len(_list(json.loads(path.read_bytes())))
        except (ValueError, TypeError, RecursionError) as error:
            tqdm.write(f"{path} is damaged ({error}): how long it was trained is not known")
        else:
            if epochs < config.epochs:
                tqdm.write(f"{workdir}: trained for {epochs} of {config.epochs} epochs so far")
    return Trained(config, dataset, model, variables)


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def initial_state(phase: Phase, variables: dict[str, Any]) -> State:
    """The state before the first step, where the mapped steps want it."""
    return jax.device_put(_state(phase, variables), parallel.local_sharding())


def _state(phase: Phase, variables: dict[str, Any]) -> State:
    trained, _ = partition(variables["params"], phase.is_trainable)
    opt_state = phase.optimizer.init(trained)
    return State(jnp.zeros((), jnp.int32), variables, opt_state, _zero_sums(phase))


def state_shapes(phase: Phase) -> State:
    """The shapes of a state, which a checkpoint must have."""
    return jax.eval_shape(partial(_state, phase), network_shapes(phase.model))


def fit(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    workdir: Path,
    phase: Phase,
    source: sources.Source,
    validation: sources.Source | None = None,
) -> list[dict[str, Any]]:
    """Trains a phase, or goes on where the run in `workdir` stopped.

    Writes there: `config.json`, `dataset.json`, `patches.json`, `parameters.txt`, `checkpoints/`
    every `config.checkpoint_every` steps and at the end of each epoch, `tensorboard/` and
    `history.json`, the figures of every epoch, which are also returned. A run that was killed and
    is started again ends with what it would have ended with, to the last bit on the same devices.

    Args:
      config: of the job; every field recorded.
      dataset: what the patches are.
      workdir: of the run.
      phase: what to train.
      source: the training patches.
      validation: those that `phase.validate` looks at, which are put on record, too.

    Raises:
      InputError: too few patches for a batch, no validation where the best checkpoint is asked for,
        another run in `workdir`, other patches or classes than it was trained on, no whole
        checkpoint, no room for one, or a loss that is not finite.
      Preempted: SIGTERM or SIGINT came; the state is saved.
    """
    steps = inputs.count_steps(len(source), config.batch_size, config.drop_last)
    if steps == 0:
        raise InputError(
            f"config.batch_size is {config.batch_size} but there are only {len(source)} training "
            "patches: set a smaller one"
        )
    if _score(config) and phase.validate is None:
        raise InputError(
            "config.select is 'best' but there are no validation patches: set --config.select=last"
        )
    if _score(config) and validation is not None and not _has_counted(validation, dataset):
        raise InputError(
            f"config.select is 'best' but no pixel of the validation masks of {config.data.root} "
            "belongs to a class: correct val/mask, or set --config.select=last"
        )
    resumed = has_checkpoint(workdir)
    runs.check(config, workdir, started=resumed)
    runs.check_dataset(dataset, workdir, started=resumed)
    records = [
        *source.records,
        *(r._replace(name=f"val/{r.name}") for r in (validation.records if validation else ())),
    ]
    runs.check_patches(records, workdir, started=resumed)
    if not resumed:  # before anything is written
        variables, report = initial_variables(config, phase.model)
        state = initial_state(phase, variables)
    parallel.wait_for_all("looked at the workdir")
    if parallel.is_first():
        runs.save(config, dataset, workdir)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir, _score(config))
        stack.callback(checkpoints.close)
        history: list[dict[str, Any]] = []
        if resumed:
            state, history = _restored(checkpoints, phase, steps, workdir)
            tqdm.write(f"going on after step {int(state.step)} of {config.epochs * steps}")
        elif parallel.is_first():
            _describe(state.variables["params"], workdir)
            if report is not None:
                weights.write_report(report, workdir / weights.REPORT_FILE)
        if parallel.is_first():  # now that a run of version 0.1 could go on with them
            patch_records.save(records, workdir)
        first, total = int(state.step), config.epochs * steps
        begun = time.monotonic()
        writer = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first + 1, write_to_disk=parallel.is_first()
        )
        stack.callback(writer.close)
        batches = inputs.read_batches(
            source,
            config.batch_size,
            workers=config.data.workers,
            order=inputs.Order(config.seed, config.epochs, config.drop_last, start=first),
        )
        stack.callback(batches.close)
        progress = show_progress(
            total=total,
            initial=first,
            unit="step",
        )
        stack.callback(progress.close)
        terminated = stack.enter_context(catch_termination())
        step_function = parallel.map_train_step(lambda *arguments: train_step(phase, *arguments))
        rng = jax.random.key(config.seed + 1)  # not the key of the initial weights
        for epoch in range(len(history), config.epochs):
            values = phase.values(epoch)
            since_log: list[tuple[int, np.ndarray]] = []  # the patches of each step
            for step in range(int(state.step), (epoch + 1) * steps):
                batch = next(batches)
                state = step_function(state, batch, _scalars(values), rng)
                since_log.append((step, batch["index"]))
                progress.update()
                if step == first:
                    jax.block_until_ready(state.step)
                    tqdm.write(f"first step done after {time.monotonic() - begun:.0f} s")
                done, last = step + 1, step + 1 == (epoch + 1) * steps
                if last or (done - epoch * steps) % config.log_every == 0:
                    _check_finite(state, source, since_log)
                    state = _log(
                        state, phase, values, writer, progress, f"{epoch + 1}/{config.epochs}"
                    )
                    since_log = []
                stops = parallel.agree_to_stop(step, terminated=bool(terminated))
                if not last and (stops or done % config.checkpoint_every == 0):
                    _check_finite(state, source, since_log)
                    checkpoints.save(state, {"history": history}, None)
                    if stops:
                        raise _preempted(workdir, terminated, done, total)
            sums = {name: float(value) for name, value in state.sums["epoch"].items()}
            figures = {name: sums[name] / sums["steps"] for name in phase.metrics}
            state = _with_sums(state, _zero_sums(phase))
            scores = phase.validate(state.variables) if phase.validate is not None else {}
            history.append({"epoch": epoch, **figures, **values, **scores})
            _report(history[-1], dataset.classes, config.epochs, int(state.step), writer)
            # Before the checkpoint, so that where there is one there is a history.
            if parallel.is_first():
                with atomic_path(workdir / HISTORY_FILE) as path:
                    path.write_text(json.dumps(_without_nan(history), indent=1) + "\n")
            checkpoints.save(state, {"history": history}, scores)
            if stops and epoch + 1 < config.epochs:
                raise _preempted(workdir, terminated, int(state.step), total)
        return history


def _has_counted(validation: sources.Source, dataset: Dataset) -> bool:
    """Whether a patch has a mask with a pixel that scores count; it stops at the first."""
    return any(
        (patch["masks"][0] < dataset.num_classes).any()
        for patch in (validation[index] for index in range(len(validation)))
        if "masks" in patch
    )


def _restored(
    checkpoints: Checkpoints, phase: Phase, steps: int, workdir: Path
) -> tuple[State, list[dict[str, Any]]]:
    """The newest state that is whole, and the figures of the epochs before it."""
    state, meta = checkpoints.restore_latest(state_shapes(phase))
    history, step = meta["history"], int(state.step)
    if not len(history) * steps <= step < (len(history) + 1) * steps:
        raise InputError(
            f"{workdir}: {len(history)} epochs took {step} steps when it was trained, now they "
            f"would take {len(history) * steps}: restore the patches, or name another --workdir"
        )
    return state, history


def _preempted(workdir: Path, received: Sequence[str], step: int, total: int) -> Preempted:
    name = received[0] if received else "SIGTERM"  # of another process of the run
    return Preempted(
        f"{workdir}: stopped by {name} after step {step} of {total}; the same command goes on "
        "from there"
    )


def _check_finite(
    state: State, source: sources.Source, since_log: Sequence[tuple[int, np.ndarray]]
) -> None:
    """Refuses to go on from, or to keep, a state that a loss which is not finite has spoiled."""
    bad = int(state.sums["not_finite"])
    if bad < 0:
        return
    names = [source.names[i] for step, indices in since_log if step == bad for i in indices]
    raise InputError(
        f"the loss is not finite at step {bad + 1} (patches {', '.join(names[:_NAMED])}"
        f"{', ...' if len(names) > _NAMED else ''}): lower config.optimizer.learning_rate and "
        "start anew with another --workdir; the checkpoint before it is kept"
    )


def _log(
    state: State,
    phase: Phase,
    values: Mapping[str, float],
    writer: SummaryWriter,
    progress: tqdm,
    epoch: str,
) -> State:
    """Writes the means since the last log, and returns the state with their sums at zero."""
    sums = {name: float(value) for name, value in jax.device_get(state.sums["logged"]).items()}
    step = int(state.step)
    shown = {name: sums[name] / sums["steps"] for name in phase.metrics}
    shown |= values | {"learning_rate": float(phase.learning_rate(step - 1))}
    for name, value in shown.items():
        writer.add_scalar(f"train/{name}", value, step)
    progress.set_postfix_str(
        f"epoch {epoch}, " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()),
        refresh=False,
    )
    return _with_sums(state, {**state.sums, "logged": _zero_sums(phase)["logged"]})


def _with_sums(state: State, sums: dict[str, Any]) -> State:
    return state._replace(sums=jax.device_put(sums, parallel.local_sharding()))


def _describe(params: Mapping[str, Any], workdir: Path) -> None:
    """The table of parameters into a file, their number to the terminal."""
    overview = parameter_overview.get_parameter_overview(params)
    (workdir / "parameters.txt").write_text(overview + "\n")
    tqdm.write(f"{parameter_overview.count_parameters(params):,} parameters")


def _without_nan(value: Any) -> Any:
    """Figures as JSON can say them: what is undefined becomes null."""
    if isinstance(value, dict):
        return {name: _without_nan(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _scalars(values: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {name: np.float32(value) for name, value in values.items()}


def _report(
    figures: Mapping[str, Any],
    classes: Sequence[str],
    epochs: int,
    step: int,
    writer: SummaryWriter,
) -> None:
    """An epoch's figures: all of them to TensorBoard, those that are one number to the terminal."""
    shown = []
    for name, value in figures.items():
        if isinstance(value, list):
            for class_name, of_class in zip(classes, value):
                writer.add_scalar(f"epoch/{name}/{class_name}", of_class, step)
        elif name != "epoch":
            writer.add_scalar(f"epoch/{name}", value, step)
            shown.append(f"{name} {value:.4f}")
    writer.flush()
    tqdm.write(f"epoch {figures['epoch'] + 1}/{epochs}: " + ", ".join(shown))
