"""The training loop of all methods: epochs, metrics, checkpoints, resume."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from tensorboardX import SummaryWriter
from tqdm import tqdm

from wsss_jax import inputs, parallel, patch_records, runs
from wsss_jax.checkpoints import Checkpoints, has_checkpoint
from wsss_jax.errors import InputError, Preempted
from wsss_jax.interop import weights
from wsss_jax.progress import catch_termination, show_progress
from wsss_jax.state import State
from wsss_jax.training import divergence
from wsss_jax.training import history as histories
from wsss_jax.training.divergence import Diverged
from wsss_jax.training.initialization import initialize_variables
from wsss_jax.training.patches import Patches, check_patches
from wsss_jax.training.step import (
    complete_sums,
    make_state,
    reset_sums,
    state_shapes,
    train_step,
    zero_sums,
)
from wsss_jax.training.task import Task, Validate


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
        checkpoint, no room for one, or training that failed (`divergence.Diverged`).
      Preempted: SIGTERM or SIGINT came; the state is saved.
    """
    steps = check_patches(config, patches, validate)
    task = task._replace(ema_decay=config.ema.decay)
    resumed = has_checkpoint(workdir)
    runs.check(config, workdir, started=resumed, trained=True)  # its state will tell
    runs.check_dataset(patches.dataset, workdir, started=resumed)
    records = patches.records()
    runs.check_patches(config, records, workdir, started=resumed)
    if not resumed:  # before anything is written
        variables, report = initialize_variables(config, task.network)
        state = make_state(task, variables)
        parallel.wait_for_all("looked at the workdir")
        if parallel.is_first():
            runs.save(config, patches.dataset, workdir)
    with contextlib.ExitStack() as stack:
        training = _Training(config, workdir, task, patches, steps, stack)
        if resumed:
            training.restore()
            # Of an epoch that is still to be trained, the scores would be of other label maps than
            # those of the epochs before.
            runs.check(config, workdir, started=True, trained=training.is_complete)
            parallel.wait_for_all("looked at the workdir")
        else:
            training.begin(state, report)
        if parallel.is_first():  # now that it is known that the run can continue with them
            if resumed:
                runs.save(config, patches.dataset, workdir)
            patch_records.save(records, workdir)
        training.open(stack)
        while (epoch := len(training.history)) < training.epochs:
            try:
                stops = training.train_epoch(epoch)
            except Diverged as diverged:
                training.go_back(diverged)
                continue
            training.end_epoch(epoch, validate)
            if stops and epoch + 1 < training.epochs:
                raise training.preempted()
        if selection := histories.describe_selection(training.history, config.select):
            tqdm.write(selection)
        return training.history


class _Training:
    """A training under way: its state, and where it reads, reports and saves."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        task: Task,
        patches: Patches,
        steps: int,
        stack: contextlib.ExitStack,
    ):
        self._config, self._workdir, self._task, self._patches = config, workdir, task, patches
        self.epochs = histories.count_epochs(config)
        self._steps, self._total = steps, self.epochs * steps  # of an epoch, of all
        self._regular = divergence.RegularSteps(config.checkpoint_every, steps)
        score = histories.selecting_score(config)
        kept = divergence.keep_regular(config, task, self._regular, score)
        self._checkpoints = Checkpoints(workdir, score, also_keep=kept)
        stack.callback(self._checkpoints.close)
        self.history: list[dict[str, Any]] = []
        self._restored: list[dict[str, Any]] = []  # the times that the run went back

    @property
    def is_complete(self) -> bool:
        """Whether all epochs of the schedule are trained, beyond which no run can go on."""
        return len(self.history) >= self._config.epochs

    def begin(self, state: State, report: weights.Report | None) -> None:
        """Starts from the state before the first step, and describes it."""
        self._state = state
        if parallel.is_first():
            params = state.variables["params"]
            overview = parameter_overview.get_parameter_overview(params)
            (self._workdir / "parameters.txt").write_text(overview + "\n")
            tqdm.write(f"{parameter_overview.count_parameters(params):,} parameters")
            if report is not None:
                weights.write_report(report, self._workdir / weights.REPORT_FILE)
        if self._config.on_divergence == "restore":  # training may fail before the next checkpoint
            if parallel.is_first():  # without a history these would be converted weights
                histories.save([], self._workdir)
            self._save(None)

    def restore(self) -> None:
        """Goes back to the newest state that is whole, and to the figures of the epochs before."""
        meta = self._load(self._checkpoints.list_steps())
        self._restored = meta.get("restored", [])
        tqdm.write(f"continuing after step {int(self._state.step)} of {self._total}")

    def go_back(self, diverged: Diverged) -> None:
        """Goes back to a regular checkpoint from before a failure, at half the learning rate.

        Nothing is saved until the next checkpoint: a run that is killed before it comes here again
        by itself.

        Raises:
          Diverged: that is not asked for, was done too often, or there is no such checkpoint.
        """

        steps = [step for step in self._checkpoints.list_steps() if step in self._regular]
        chosen = divergence.choose_checkpoint(diverged.failure, steps, self._restored)
        is_asked_for = self._config.on_divergence == "restore"
        if not is_asked_for or len(self._restored) == divergence.MOST_RESTORES or chosen is None:
            raise diverged
        self._load([step for step in steps if step <= chosen])
        step = int(self._state.step)
        record = divergence.record(diverged.failure, step, self._restored)
        self._restored = [*self._restored, record]
        self._checkpoints.delete_after(step)
        if parallel.is_first():
            histories.save(self.history, self._workdir)
        self._close_step_files()
        self._open_step_files()
        self._bar.reset(self._total)
        self._bar.update(step)
        tqdm.write(
            f"{diverged.summary}: going back to the checkpoint of step {step}, from there on with "
            f"{record['rate_factor']:g} of the learning rate that is set"
        )

    def _load(self, steps: Sequence[int]) -> dict[str, Any]:
        """Restores the newest undamaged of these states and its history; returns its record."""
        state, meta = self._checkpoints.restore_latest(state_shapes(self._task), steps)
        self._state = complete_sums(self._task, state)
        self.history, step = meta["history"], int(state.step)
        epochs = len(self.history)
        if not epochs * self._steps <= step < (epochs + 1) * self._steps:
            raise InputError(
                f"{self._workdir}: {epochs} epochs took {step} steps when it was trained, now they "
                f"would take {epochs * self._steps}: restore the patches, or name another --workdir"
            )
        return meta

    def open(self, stack: contextlib.ExitStack) -> None:
        """Opens the batches after the state's step, the logs, and the ears for signals."""
        self._begun, self._first = time.monotonic(), int(self._state.step)
        self._open_step_files()
        stack.callback(self._close_step_files)
        self._bar = show_progress(total=self._total, initial=self._first, unit="step")
        stack.callback(self._bar.close)
        self._signals = stack.enter_context(catch_termination())
        self._step = parallel.map_train_step(partial(train_step, self._task))
        self._rng = jax.random.key(self._config.seed + 1)  # not the key of the initial weights

    def _open_step_files(self) -> None:
        """Opens what goes step by step, batches and TensorBoard, after the state's step."""
        config, first = self._config, int(self._state.step)
        self._writer = SummaryWriter(
            str(self._workdir / "tensorboard"),
            purge_step=first + 1,
            write_to_disk=parallel.is_first(),
        )
        self._batches = inputs.read_batches(
            self._patches.training,
            config.batch_size,
            workers=config.data.workers,
            order=inputs.Order(config.seed, self.epochs, config.drop_last, start=first),
        )

    def _close_step_files(self) -> None:
        self._batches.close()
        self._writer.close()

    def train_epoch(self, epoch: int) -> bool:
        """Takes the steps of an epoch that are left; tells whether training is to stop after it."""
        config = self._config
        recent: list[tuple[int, np.ndarray]] = []  # the patches of each step since the last log
        stops = False
        for step in range(int(self._state.step), (epoch + 1) * self._steps):
            batch = next(self._batches)
            values = self._get_values(epoch, step)
            scalars = {name: np.float32(value) for name, value in values.items()}
            self._state = self._step(self._state, batch, scalars, self._rng)
            recent.append((step, batch["index"]))
            self._bar.update()
            if step == self._first:
                jax.block_until_ready(self._state.step)
                tqdm.write(f"first step done after {time.monotonic() - self._begun:.0f} s")
            done, last = step + 1, step + 1 == (epoch + 1) * self._steps
            if last or (done - epoch * self._steps) % config.log_every == 0:
                self._check(recent)
                self._log(epoch, values)
                recent = []
            stops = parallel.agree_to_stop(step, terminated=bool(self._signals))
            if not last and (stops or done % config.checkpoint_every == 0):
                self._check(recent)
                self._save(None)
                if stops:
                    raise self.preempted()
        return stops

    def end_epoch(self, epoch: int, validate: Validate | None) -> None:
        """Validates, and saves state and history."""
        state, classes = self._state, self._patches.dataset.classes
        sums = {name: float(value) for name, value in state.sums["epoch"].items()}
        means = {name: sums[name] / sums["steps"] for name in self._task.metrics}
        zeros = zero_sums(self._task)
        self._state = state = reset_sums(state, {name: zeros[name] for name in ("logged", "epoch")})
        scores = validate(state.result) if validate is not None else {}
        if histories.SCORE in scores:
            earlier = [record.get(histories.SCORE) for record in self.history]
            smoothed = histories.smooth([*earlier, scores[histories.SCORE]])
            scores = {**scores, histories.SMOOTHED: smoothed}
        values = self._get_values(epoch, int(state.step) - 1)
        figures: dict[str, Any] = {"epoch": epoch, **means, **values, **scores}
        if restored := divergence.find_restored(self._restored, epoch, self._steps):
            figures[histories.RESTORED] = restored
        self.history.append(figures)
        _write_figures(self._writer, figures, classes, int(state.step))
        one_number = {
            name: value
            for name, value in figures.items()
            if name != "epoch" and not isinstance(value, list)
        }
        tqdm.write(
            f"epoch {epoch + 1}/{self.epochs}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in one_number.items())
        )
        # Before the checkpoint, so that where there is one there is a history.
        if parallel.is_first():
            histories.save(self.history, self._workdir)
        self._save(scores)

    def preempted(self) -> Preempted:
        """Returns what says that a signal stopped the training after a step that is saved."""
        name = self._signals[0] if self._signals else "SIGTERM"  # of another process of the run
        return Preempted(
            f"{self._workdir}: stopped by {name} after step {int(self._state.step)} of "
            f"{self._total}; the same command continues from there"
        )

    def _get_values(self, epoch: int, step: int) -> dict[str, float]:
        """Returns the scalars of a step: the task's, and what multiplies its updates."""
        values = self._task.values(epoch, step)
        if self._config.on_divergence == "restore" or self._restored:
            values |= {divergence.RATE_FACTOR: divergence.compute_factor(self._restored)}
        return values

    def _save(self, scores: Mapping[str, float] | None) -> None:
        """Saves the state and its record; with the scores of validation at the end of an epoch."""
        meta: dict[str, Any] = {"history": self.history}
        if self._restored:
            meta["restored"] = self._restored
        self._checkpoints.save(self._state, meta, scores)

    def _check(self, recent: Sequence[tuple[int, np.ndarray]]) -> None:
        """Refuses to go on from, or to keep, a state after a failure.

        Args:
          recent: the patches of each step since the last check.

        Raises:
          Diverged: training has failed.
        """
        state = self._state
        failure = divergence.find_failure(self._task, state.sums, int(state.step))
        if failure is None and int(state.step) == self._total:
            failure = divergence.find_last_failure(state.variables, self._total)
        if failure is None:
            return
        stems = self._patches.training.names
        names = [stems[i] for step, indices in recent if step == failure.step for i in indices]
        raise divergence.make_error(failure, self._config, self._task, names, self._restored)

    def _log(self, epoch: int, values: dict[str, float]) -> None:
        """Writes the means since the last log, and sets their sums to zero."""
        state, task = self._state, self._task
        sums = {name: float(value) for name, value in jax.device_get(state.sums["logged"]).items()}
        step = int(state.step)
        shown = {name: sums[name] / sums["steps"] for name in task.metrics}
        rate = float(task.learning_rate(step - 1)) * values.get(divergence.RATE_FACTOR, 1.0)
        shown |= values | {"learning_rate": rate}
        for name, value in shown.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._bar.set_postfix_str(
            f"epoch {epoch + 1}/{self.epochs}, "
            + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()),
            refresh=False,
        )
        self._state = reset_sums(state, {"logged": zero_sums(task)["logged"]})


def _write_figures(
    writer: SummaryWriter, figures: Mapping[str, Any], classes: Sequence[str], step: int
) -> None:
    """Writes an epoch's figures to TensorBoard."""
    for name, value in figures.items():
        if name == histories.RESTORED:
            continue
        if isinstance(value, list):
            for class_name, of_class in zip(classes, value):
                writer.add_scalar(f"epoch/{name}/{class_name}", of_class, step)
        elif name != "epoch":
            writer.add_scalar(f"epoch/{name}", value, step)
    writer.flush()
