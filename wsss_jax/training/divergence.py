"""Training that fails: how it is noticed, what the message says, and how far a run goes back.

Two failures are known. A loss that is not finite never becomes finite again. In a collapse the loss
stays where a network that has died leaves it; a method says by `Task.collapse` what that is. Both
are noticed in the state of training itself, so that a run that continues notices them at the same
step as one that was never interrupted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.training.task import Task
from wsss_jax.wording import format_count

MOST_RESTORES = 3  # the learning rate is then an eighth, and more of it would not help
RATE_FACTOR = "rate_factor"  # among the scalars of a step: what its updates are multiplied by
NOT_FINITE, COLLAPSED = "not_finite", "collapsed"
_MOST_NAMES = 5  # patches that a message names


class Failure(NamedTuple):
    """How training failed.

    Attributes:
      reason: `NOT_FINITE` or `COLLAPSED`.
      step: the first that shows it, from 0.
    """

    reason: str
    step: int


class Diverged(InputError):
    """Training failed; the message says how, and what to do.

    Attributes:
      failure: how.
      summary: the first half of the message.
    """

    def __init__(self, failure: Failure, summary: str, remedy: str):
        super().__init__(f"{summary}: {remedy}")
        self.failure, self.summary = failure, summary


class RegularSteps(NamedTuple):
    """The steps at which a run saves its state, whether or not it is interrupted.

    A run that fails goes back to one of these, so that it ends with the same weights however often
    it was interrupted.

    Attributes:
      every: `config.checkpoint_every`.
      of_epoch: steps of an epoch, after each of which it saves.
    """

    every: int
    of_epoch: int

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and (step % self.every == 0 or step % self.of_epoch == 0)


class KeepRegular:
    """Keeps the checkpoints that a run may go back to; a preservation policy of Orbax.

    A failure that is not noticed yet began at most `window` steps ago. Kept are the regular
    checkpoints since then and as many from before as the run may go back to one after the other;
    and, up to the oldest of them, the best, which is the best of a run that has gone back.
    """

    def __init__(
        self,
        regular: RegularSteps,
        window: int,
        score: str | None,
    ):
        self._regular, self._window, self._score = regular, window, score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells which checkpoints, each with `step` and `metrics`, are kept; Orbax calls it."""
        del context
        regular = sorted(info.step for info in checkpoints if info.step in self._regular)
        begin = max((info.step for info in checkpoints), default=0) - self._window
        before = [step for step in regular if step <= begin][-MOST_RESTORES:]
        first = min(before, default=0)
        kept = {step for step in regular if step >= first}
        if self._score is not None:
            scores = [
                (info.metrics[self._score], info.step)
                for info in checkpoints
                if info.metrics and info.step <= first
            ]
            kept |= {step for _, step in sorted(scores)[-1:]}
        return [info.step in kept for info in checkpoints]


def keep_regular(
    config: ml_collections.ConfigDict,
    task: Task,
    regular: RegularSteps,
    score: str | None,
) -> KeepRegular | None:
    """Returns what a run must keep beside its newest checkpoints; None where it never goes back."""
    if config.on_divergence != "restore":
        return None
    window = task.collapse.steps if task.collapse is not None else 1
    return KeepRegular(regular, window, score)


def zero_counts(task: Task) -> dict[str, Any]:
    """Returns what the state counts before the first step, see `count`."""
    counts = {NOT_FINITE: np.int32(-1)}
    if task.collapse is not None:
        counts[COLLAPSED] = np.int32(-1)
    return counts


def count(
    task: Task,
    counts: Mapping[str, jax.Array],
    step: jax.Array,
    metrics: Mapping[str, jax.Array],
    values: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Counts a step of training; a pure function.

    Args:
      task: what is trained.
      counts: "not_finite", the first step whose loss was not finite, or -1, and, where the task
        knows a collapse, "collapsed", the first of the collapsed steps in a row up to here, or -1;
        it stays after `Collapse.steps` of them.
      step: () int32, of the step.
      metrics: of the step, over the global batch.
      values: its scalars.

    Returns:
      The counts after the step.
    """
    fine = jnp.isfinite(metrics["loss"]) | (counts[NOT_FINITE] >= 0)
    new = {NOT_FINITE: jnp.where(fine, counts[NOT_FINITE], step)}
    if task.collapse is not None:
        first = counts[COLLAPSED]
        is_over = (first >= 0) & (step - first >= task.collapse.steps)
        begun = jnp.where(first >= 0, first, step)
        collapsed = task.collapse.is_collapsed(metrics, values)
        new[COLLAPSED] = jnp.where(is_over | collapsed, begun, -1)
    return new


def find_failure(task: Task, counts: Mapping[str, Any], steps: int) -> Failure | None:
    """Finds in the counts, after so many steps, whether training has failed."""
    if (step := int(counts[NOT_FINITE])) >= 0:
        return Failure(NOT_FINITE, step)
    if task.collapse is None:
        return None
    step = int(counts[COLLAPSED])
    return Failure(COLLAPSED, step) if 0 <= step <= steps - task.collapse.steps else None


def find_last_failure(variables: Mapping[str, Any], steps: int) -> Failure | None:
    """Finds whether the last step of a run has made weights that are not finite.

    After any other step the loss of the next one tells.

    Args:
      variables: after the last step.
      steps: taken in all.
    """
    # By NumPy: JAX would compile two programs for every shape.
    is_finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    return None if is_finite else Failure(NOT_FINITE, steps)


def choose_checkpoint(
    failure: Failure, steps: Sequence[int], restored: Sequence[Mapping[str, Any]]
) -> int | None:
    """Chooses the checkpoint to go back to: the newest from before a failure.

    If the run went back to it the last time, what leads to the failure may be in it already: then
    the one before it is taken, if there is any.

    Args:
      failure: what happened.
      steps: of the regular checkpoints that there are.
      restored: the times that the run has gone back before, see `record`.

    Returns:
      Its step, or None without any.
    """
    before = sorted(step for step in steps if _is_before(failure, step))
    if len(before) > 1 and restored and restored[-1]["checkpoint"] == before[-1]:
        return before[-2]
    return before[-1] if before else None


def _is_before(failure: Failure, step: int) -> bool:
    """Whether the state after so many steps is from before a failure.

    The first step that shows it is computed from a state that may hold it already. What no step has
    changed yet can lead to a collapse, but holds none.
    """
    return step < failure.step or (step == 0 and failure.reason == COLLAPSED)


def make_error(
    failure: Failure,
    config: ml_collections.ConfigDict,
    task: Task,
    patches: Sequence[str],
    restored: Sequence[Mapping[str, Any]],
) -> Diverged:
    """Makes the error for a failure: its message says which it was, and the remedies by field.

    Args:
      failure: what happened.
      config: of the run.
      task: of the run.
      patches: names of the patches of the step.
      restored: the times that the run has gone back before, see `record`.
    """
    if task.collapse is not None and failure.reason == COLLAPSED:
        text = f"{task.collapse.text} for {task.collapse.steps} steps from step {failure.step + 1}"
    else:
        names = ", ".join(patches[:_MOST_NAMES]) + (", ..." if len(patches) > _MOST_NAMES else "")
        text = f"the loss is not finite at step {failure.step + 1}"
        text += f" (patches {names})" if names else ""
    if restored:
        text += (
            f", after the run has gone back {format_count(len(restored), 'time')} and with "
            f"{compute_factor(restored):g} of the learning rate that is set"
        )
    rate = config.optimizer.learning_rate * compute_factor(restored) / 2
    remedies = [f"--config.optimizer.learning_rate={rate:g}"]
    if not config.optimizer.clip_norm:
        remedies.append("--config.optimizer.clip_norm=1")
    remedies += task.remedies
    again = f"start again with another --workdir and one or more of {', '.join(remedies)}"
    if failure.reason == NOT_FINITE and failure.step == 0:  # there is nothing before it
        return Diverged(failure, text, again)
    if config.on_divergence == "restore":
        missing = "" if len(restored) == MOST_RESTORES else "no checkpoint from before it is left; "
        return Diverged(failure, text, missing + again)
    return Diverged(
        failure,
        text,
        "give the same command with --config.on_divergence=restore, which goes back to one of its "
        f"checkpoints from before it, if any is left, at half the learning rate, or {again}",
    )


def record(failure: Failure, checkpoint: int, restored: Sequence[Any]) -> dict[str, Any]:
    """Returns, for the history, that a run went back to the checkpoint of a step.

    Args:
      failure: why.
      checkpoint: its step.
      restored: the times before.
    """
    return {
        "reason": failure.reason,
        "step": failure.step + 1,
        "checkpoint": checkpoint,
        "rate_factor": 0.5 ** (len(restored) + 1),
    }


def compute_factor(restored: Sequence[Any]) -> float:
    """Returns the factor of the learning rate after the run has gone back so many times."""
    return 0.5 ** len(restored)


def find_restored(
    restored: Sequence[Mapping[str, Any]], epoch: int, steps: int
) -> list[Mapping[str, Any]]:
    """Finds the times that a run went back into an epoch, which has so many steps.

    What a later time has undone counts there, too.
    """
    checkpoints = [each["checkpoint"] for each in restored]
    return [each for n, each in enumerate(restored) if min(checkpoints[n:]) // steps == epoch]
