"""The training loop of all methods: epochs, metrics, checkpoints, resume."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from tensorboardX import SummaryWriter
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import inputs, parallel, patch_records, runs
from wsss_jax.checkpoints import Checkpoints, has_checkpoint
from wsss_jax.errors import InputError, Preempted
from wsss_jax.interop import weights
from wsss_jax.patch_records import PatchRecord
from wsss_jax.progress import catch_termination, show_progress
from wsss_jax.sources import Source
from wsss_jax.state import State
from wsss_jax.training import history as histories
from wsss_jax.training.initialization import initialize_variables
from wsss_jax.training.step import make_state, reset_sums, state_shapes, train_step, zero_sums
from wsss_jax.training.task import Task, Validate

_MOST_NAMES = 20  # patches that a message names


class Patches(NamedTuple):
    """The patches of a run: to train on and, if there are any, to validate on."""

    dataset: Dataset
    training: Source
    validation: Source | None = None

    def records(self) -> list[PatchRecord]:
        """Returns what says which patches these are."""
        validation = self.validation.records if self.validation else ()
        return [
            *self.training.records,
            *(record._replace(name=f"val/{record.name}") for record in validation),
        ]


def fit(
    config: ml_collections.ConfigDict,
    workdir: Path,
    task: Task,
    patches: Patches,
    validate: Validate | None = None,
) -> list[dict[str, Any]]:
    """Trains, or continues where the run in `workdir` stopped.

    Writes there: `config.json`, `dataset.json`, `patches.json`, `parameters.txt`, `checkpoints/`
    every `config.checkpoint_every` steps and at the end of each epoch, `tensorboard/` and
    `history.json`, the figures of every epoch, which are also returned. A run that was killed and
    is started again ends with what it would have ended with, to the last bit on the same devices.

    Args:
      config: of the job, complete; every field is recorded.
      workdir: of the run.
      task: what to train.
      patches: what to train on; they are put on record.
      validate: variables -> figures, at the end of each epoch; None goes without.

    Raises:
      InputError: too few patches for a batch, no validation where the best checkpoint is asked for,
        another run in `workdir`, other patches or classes than it was trained on, no whole
        checkpoint, no room for one, or a loss that is not finite.
      Preempted: SIGTERM or SIGINT came; the state is saved.
    """
    steps = _check_patches(config, patches, validate)
    task = task._replace(ema_decay=config.ema.decay)
    resumed = has_checkpoint(workdir)
    runs.check(config, workdir, started=resumed)
    runs.check_dataset(patches.dataset, workdir, started=resumed)
    records = patches.records()
    runs.check_patches(records, workdir, started=resumed)
    if not resumed:  # before anything is written
        variables, report = initialize_variables(config, task.network)
        state = make_state(task, variables)
    parallel.wait_for_all("looked at the workdir")
    if parallel.is_first():
        runs.save(config, patches.dataset, workdir)
    with contextlib.ExitStack() as stack:
        training = _Training(config, workdir, task, patches, stack)
        if resumed:
            training.restore(steps)
        else:
            training.begin(state, report)
        if parallel.is_first():  # now that it is known that the run can continue with them
            patch_records.save(records, workdir)
        training.open(steps, stack)
        for epoch in range(len(training.history), config.epochs):
            stops = training.train_epoch(epoch)
            training.end_epoch(epoch, validate)
            if stops and epoch + 1 < config.epochs:
                raise training.preempted()
        if selection := histories.describe_selection(training.history, config.select):
            tqdm.write(selection)
        return training.history


def _check_patches(
    config: ml_collections.ConfigDict, patches: Patches, validate: Validate | None
) -> int:
    """Sees that there are patches for what the configuration asks; returns the steps per epoch."""
    examples = len(patches.training)
    steps = inputs.count_steps(examples, config.batch_size, config.drop_last)
    if steps == 0:
        raise InputError(
            f"config.batch_size is {config.batch_size} but there are only {examples} training "
            "patches: set a smaller one"
        )
    if not histories.selecting_score(config):
        return steps
    classes = patches.dataset.num_classes
    if validate is None:
        raise InputError(
            f"config.select is {config.select!r} but there are no validation patches: set "
            "--config.select=last"
        )
    if patches.validation is not None and not _has_counted_pixels(patches.validation, classes):
        raise InputError(
            f"config.select is {config.select!r} but no pixel of the validation masks of "
            f"{config.data.root} belongs to a class: correct val/mask, or set --config.select=last"
        )
    return steps


def _has_counted_pixels(validation: Source, num_classes: int) -> bool:
    """Tells whether a validation mask has a pixel that scores count; stops at the first."""
    return any(
        (patch["masks"][0] < num_classes).any()
        for patch in (validation[index] for index in range(len(validation)))
        if "masks" in patch
    )


class _Training:
    """A training under way: its state, and where it reads, reports and saves."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        task: Task,
        patches: Patches,
        stack: contextlib.ExitStack,
    ):
        self._config, self._workdir, self._task, self._patches = config, workdir, task, patches
        self._checkpoints = Checkpoints(workdir, histories.selecting_score(config))
        stack.callback(self._checkpoints.close)
        self.history: list[dict[str, Any]] = []

    def begin(self, state: State, report: weights.Report | None) -> None:
        """Starts from the state before the first step, and describes it."""
        self._state = state
        if not parallel.is_first():
            return
        params = state.variables["params"]
        overview = parameter_overview.get_parameter_overview(params)
        (self._workdir / "parameters.txt").write_text(overview + "\n")
        tqdm.write(f"{parameter_overview.count_parameters(params):,} parameters")
        if report is not None:
            weights.write_report(report, self._workdir / weights.REPORT_FILE)

    def restore(self, steps: int) -> None:
        """Goes back to the newest state that is whole, and to the figures of the epochs before."""
        self._state, meta = self._checkpoints.restore_latest(state_shapes(self._task))
        self.history, step = meta["history"], int(self._state.step)
        epochs = len(self.history)
        if not epochs * steps <= step < (epochs + 1) * steps:
            raise InputError(
                f"{self._workdir}: {epochs} epochs took {step} steps when it was trained, now they "
                f"would take {epochs * steps}: restore the patches, or name another --workdir"
            )
        tqdm.write(f"continuing after step {step} of {self._config.epochs * steps}")

    def open(self, steps: int, stack: contextlib.ExitStack) -> None:
        """Opens the batches after the state's step, the logs, and the ears for signals."""
        config, first = self._config, int(self._state.step)
        self._steps, self._first, self._total = steps, first, config.epochs * steps
        self._begun = time.monotonic()
        self._writer = SummaryWriter(
            str(self._workdir / "tensorboard"),
            purge_step=first + 1,
            write_to_disk=parallel.is_first(),
        )
        stack.callback(self._writer.close)
        self._batches = inputs.read_batches(
            self._patches.training,
            config.batch_size,
            workers=config.data.workers,
            order=inputs.Order(config.seed, config.epochs, config.drop_last, start=first),
        )
        stack.callback(self._batches.close)
        self._bar = show_progress(total=self._total, initial=first, unit="step")
        stack.callback(self._bar.close)
        self._signals = stack.enter_context(catch_termination())
        self._step = parallel.map_train_step(partial(train_step, self._task))
        self._rng = jax.random.key(config.seed + 1)  # not the key of the initial weights

    def train_epoch(self, epoch: int) -> bool:
        """Takes the steps of an epoch that are left; tells whether training is to stop after it."""
        config, values = self._config, self._task.values(epoch)
        scalars = {name: np.float32(value) for name, value in values.items()}
        recent: list[tuple[int, np.ndarray]] = []  # the patches of each step since the last log
        stops = False
        for step in range(int(self._state.step), (epoch + 1) * self._steps):
            batch = next(self._batches)
            self._state = self._step(self._state, batch, scalars, self._rng)
            recent.append((step, batch["index"]))
            self._bar.update()
            if step == self._first:
                jax.block_until_ready(self._state.step)
                tqdm.write(f"first step done after {time.monotonic() - self._begun:.0f} s")
            done, last = step + 1, step + 1 == (epoch + 1) * self._steps
            if last or (done - epoch * self._steps) % config.log_every == 0:
                self._check_finite(recent)
                self._log(epoch, values)
                recent = []
            stops = parallel.agree_to_stop(step, terminated=bool(self._signals))
            if not last and (stops or done % config.checkpoint_every == 0):
                self._check_finite(recent)
                self._checkpoints.save(self._state, {"history": self.history}, None)
                if stops:
                    raise self.preempted()
        return stops

    def end_epoch(self, epoch: int, validate: Validate | None) -> None:
        """Validates, and saves state and history."""
        state, classes = self._state, self._patches.dataset.classes
        sums = {name: float(value) for name, value in state.sums["epoch"].items()}
        figures = {name: sums[name] / sums["steps"] for name in self._task.metrics}
        self._state = state = reset_sums(state, zero_sums(self._task))
        scores = validate(state.result) if validate is not None else {}
        if histories.SCORE in scores:
            earlier = [record.get(histories.SCORE) for record in self.history]
            smoothed = histories.smooth([*earlier, scores[histories.SCORE]])
            scores = {**scores, histories.SMOOTHED: smoothed}
        figures = {"epoch": epoch, **figures, **self._task.values(epoch), **scores}
        self.history.append(figures)
        _write_figures(self._writer, figures, classes, int(state.step))
        one_number = {
            name: value
            for name, value in figures.items()
            if name != "epoch" and not isinstance(value, list)
        }
        tqdm.write(
            f"epoch {epoch + 1}/{self._config.epochs}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in one_number.items())
        )
        # Before the checkpoint, so that where there is one there is a history.
        if parallel.is_first():
            histories.save(self.history, self._workdir)
        self._checkpoints.save(state, {"history": self.history}, scores)

    def preempted(self) -> Preempted:
        """Returns what says that a signal stopped the training after a step that is saved."""
        name = self._signals[0] if self._signals else "SIGTERM"  # of another process of the run
        return Preempted(
            f"{self._workdir}: stopped by {name} after step {int(self._state.step)} of "
            f"{self._total}; the same command continues from there"
        )

    def _check_finite(self, recent: Sequence[tuple[int, np.ndarray]]) -> None:
        """Refuses to go on from, or to keep, a state after a loss that is not finite."""
        bad = int(self._state.sums["not_finite"])
        if bad < 0:
            return
        stems = self._patches.training.names
        names = [stems[i] for step, indices in recent if step == bad for i in indices]
        raise InputError(
            f"the loss is not finite at step {bad + 1} (patches {', '.join(names[:_MOST_NAMES])}"
            f"{', ...' if len(names) > _MOST_NAMES else ''}): lower config.optimizer.learning_rate "
            "and start again with another --workdir; the checkpoint before it is kept"
        )

    def _log(self, epoch: int, values: dict[str, float]) -> None:
        """Writes the means since the last log, and sets their sums to zero."""
        state, task = self._state, self._task
        sums = {name: float(value) for name, value in jax.device_get(state.sums["logged"]).items()}
        step = int(state.step)
        shown = {name: sums[name] / sums["steps"] for name in task.metrics}
        shown |= values | {"learning_rate": float(task.learning_rate(step - 1))}
        for name, value in shown.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._bar.set_postfix_str(
            f"epoch {epoch + 1}/{self._config.epochs}, "
            + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()),
            refresh=False,
        )
        self._state = reset_sums(state, {"logged": zero_sums(task)["logged"]})


def _write_figures(
    writer: SummaryWriter, figures: Mapping[str, Any], classes: Sequence[str], step: int
) -> None:
    """Writes an epoch's figures to TensorBoard."""
    for name, value in figures.items():
        if isinstance(value, list):
            for class_name, of_class in zip(classes, value):
                writer.add_scalar(f"epoch/{name}/{class_name}", of_class, step)
        elif name != "epoch":
            writer.add_scalar(f"epoch/{name}", value, step)
    writer.flush()
