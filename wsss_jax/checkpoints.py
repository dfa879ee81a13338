"""Checkpoints: the training state of a run with its position, saved by Orbax."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers
from tqdm import tqdm

from wsss_jax import parallel
from wsss_jax.checkpoint_arrays import check_arrays, compute_checksums, get_shapes, make_abstract
from wsss_jax.checkpoint_steps import CompleteSteps, format_error, is_checkpoint, remove_deleted
from wsss_jax.errors import InputError
from wsss_jax.progress import catch_termination
from wsss_jax.state import State

FOLDER = "checkpoints"
_CHECKSUMS = "checksums"  # in the file `meta`
_TRAINED = "trained"  # in the item `training`


def list_steps(workdir: Path) -> list[int]:
    """Lists the steps of a run's checkpoints, complete or damaged, but none still being written."""
    return sorted(
        int(path.name)
        for path in (Path(workdir) / FOLDER).glob("*")
        if path.name.isdecimal() and is_checkpoint(path)
    )


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has a checkpoint, complete or damaged, but not one still being written."""
    return bool(list_steps(workdir))


class Checkpoints:
    """The checkpoints of one run: the newest two and, by the `score` of validation, the best.

    There are two so that training can go back to the one before if the newest is damaged.
    """

    def __init__(
        self,
        workdir: Path,
        score: str | None = None,
        *,
        read_only: bool = False,
        also_keep: checkpoint_managers.PreservationPolicy | None = None,
    ):
        """Opens the checkpoints of a run.

        Args:
          workdir: folder of the run.
          score: name of the score that decides which one is best; None: none is.
          read_only: neither makes the folder nor removes what an interrupted save or deletion left.
          also_keep: which others are kept.
        """

        get_score = None if score is None else itemgetter(score)
        policies: list = [checkpoint_managers.LatestN(2)]
        if get_score is not None:
            best = checkpoint_managers.BestN(
                get_metric_fn=get_score, n=1, keep_checkpoints_without_metrics=False
            )
            policies.append(best)
        if also_keep is not None:
            policies.append(also_keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=get_score,
            step_name_format=CompleteSteps(score),
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=False,
            create=not read_only,
        )
        self._score = score
        self._path = (Path(workdir) / FOLDER).absolute()
        if not read_only and parallel.is_first():
            remove_deleted(self._path)
        self._manager = ocp.CheckpointManager(
            self._path,
            options=options,
            item_handlers={
                "variables": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, state: State, meta: dict, scores: Mapping[str, float] | None) -> None:
        """Saves the state under its step.

        Args:
          state: as training left it.
          meta: anything that JSON can hold, returned by `restore`.
          scores: of validation, among them `score`; None in the middle of an epoch.

        Raises:
          InputError: it could not be written; the checkpoints before it stay as they were.
        """
        trees = {"variables": state.result}
        if state.opt_state is not None:
            trees["training"] = _get_training(state)
        checksums = {item: compute_checksums(tree) for item, tree in trees.items()}
        items = {
            item: ocp.args.StandardSave(parallel.to_global(tree)) for item, tree in trees.items()
        }
        items["meta"] = ocp.args.JsonSave({**meta, _CHECKSUMS: checksums})
        step = int(state.step)
        try:
            if step in self._manager.all_steps():  # a damaged one; training went back before it
                self._manager.delete(step)
            elif parallel.is_first():
                _make_room(self._path / str(step))
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=scores, force=True)
        except Exception as error:  # TensorStore and Orbax raise many kinds, such as ValueError
            if parallel.is_first():  # what was written of it may have filled the disk
                for path in self._path.glob(f"{step}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            raise InputError(
                f"{self._path}: the checkpoint of step {step} could not be written "
                f"({format_error(error)}): free some space or make the folder writable, then give "
                "the same command again; the checkpoints before it are kept"
            ) from error

    def find_best(self) -> int | None:
        """Finds the step of the checkpoint with the highest score; None without any."""
        return self._manager.best_step()

    def list_steps(self) -> list[int]:
        """Lists the steps of the complete checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore_latest(self, like: State, steps: Sequence[int] | None = None) -> tuple[State, dict]:
        """Restores the newest undamaged state and its `meta`; reports damaged ones.

        Args:
          like: a state with the shapes it must have, but for its sums, which are those that were
            saved.
          steps: that may be taken, the newest first; None: all.

        Raises:
          InputError: all are damaged, or they hold another network.
        """
        steps = self.list_steps() if steps is None else steps
        return self._restore_first(steps, partial(self._restore_state, like=like))

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in self.list_steps():
            if later > step:
                self._manager.delete(later)

    def restore_variables(self, like: dict[str, Any] | None) -> dict[str, Any]:
        """Restores the variables of the best checkpoint, or the newest where there is no `score`.

        Damaged checkpoints are reported and passed over.

        Args:
          like: the shapes they must have; None takes any.

        Raises:
          InputError: none has a score yet, all are damaged, or they hold another network.
        """
        steps = self.list_steps()
        if self._score is not None:
            scores = {step: self._manager.metrics(step) for step in steps}
            scores = {step: by_name[self._score] for step, by_name in scores.items() if by_name}
            if steps and not scores:
                raise InputError(
                    f"{self._path}: no checkpoint was validated yet, which happens at the end of "
                    "each epoch: continue the training of this run until then"
                )
            steps = sorted(scores, key=lambda step: (scores[step], step), reverse=True)

        def restore(step: int) -> dict[str, Any]:
            shapes = self._manager.item_metadata(step)["variables"].tree if like is None else like
            return self._restore_items(step, {"variables": shapes})[0]["variables"]

        return self._restore_first(steps, restore)

    def _restore_first(self, steps: Sequence[int], restore: Callable[[int], Any]) -> Any:
        """Restores the first of the steps that is not damaged."""
        for step in steps:
            try:
                with catch_termination():  # threads report to the event loop
                    return restore(step)
            except InputError:
                raise
            except Exception as error:  # Orbax raises many kinds for a damaged folder
                tqdm.write(
                    f"{self._path / str(step)} is damaged ({format_error(error)}); going back to "
                    "another checkpoint"
                )
        raise InputError(
            f"{self._path}: all checkpoints are damaged: choose another --workdir, or remove this "
            "one to start again"
        )

    def _restore_state(self, step: int, like: State) -> tuple[State, dict]:
        """Restores the state and `meta` of a step; `like` is a state with the shapes it must have.

        Raises:
          InputError: the checkpoint holds a network of another shape, or weights only.
        """
        has_training = (self._path / str(step) / "training").is_dir()
        if not has_training and step == 0:
            raise InputError(
                f"{self._path.parent} holds converted weights, no training to continue: choose "
                "another --workdir and start from them with --config.init"
            )
        if not has_training:
            raise ValueError("the state of training is missing")
        saved = self._manager.item_metadata(step)["training"].tree.get("sums")
        like = like._replace(sums=_fit_sums(like.sums, saved))
        likes = {"variables": like.result, "training": _get_training(like)}
        trees, meta = self._restore_items(step, likes)
        if not isinstance(meta.get("history"), list):
            raise ValueError("the history is missing")
        training = trees["training"]
        if _TRAINED not in training:
            return State(variables=trees["variables"], **training), meta
        trained = training.pop(_TRAINED)
        return State(variables=trained, average=trees["variables"], **training), meta

    def _restore_items(self, step: int, likes: Mapping[str, Any]) -> tuple[dict[str, Any], dict]:
        """Restores the items of a step, which must have the shapes of `likes`, and its `meta`."""
        self._check_shapes(step, likes["variables"])
        items = {
            item: ocp.args.StandardRestore(make_abstract(like)) for item, like in likes.items()
        }
        args = ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
        restored = self._manager.restore(step, args=args)
        meta = dict(restored["meta"])
        trees = parallel.to_local({item: restored[item] for item in likes})
        check_arrays(trees, meta.pop(_CHECKSUMS, None))
        return trees, meta

    def close(self) -> None:
        self._manager.close()

    def _check_shapes(self, step: int, like: dict[str, Any]) -> None:
        saved = get_shapes(self._manager.item_metadata(step)["variables"].tree)
        expected = get_shapes(like)
        for name in sorted(saved.keys() | expected.keys()):
            if saved.get(name) != expected.get(name):
                raise InputError(
                    f"{self._path / str(step)}: parameter {name} has the shape "
                    f"{saved.get(name, 'none')} in the checkpoint and {expected.get(name, 'none')} "
                    "in this network: set config.model and the data set as they were when it was "
                    "trained, or choose another --workdir"
                )


def _get_training(state: State) -> dict[str, Any]:
    """Returns the part of the state that only training needs.

    Where averages are what the run gives, that includes the variables that go on to be trained.
    """
    training = {"step": state.step, "opt_state": state.opt_state, "sums": state.sums}
    return training if state.average is None else {**training, _TRAINED: state.variables}


def _fit_sums(expected: Any, saved: Any) -> Any:
    """Returns the shapes of the sums in a checkpoint: as expected, if they are there."""
    if not isinstance(expected, Mapping) or not isinstance(saved, Mapping):
        return expected
    return {name: expected.get(name, saved[name]) for name in saved}


def _make_room(path: Path) -> None:
    """Removes a damaged checkpoint; gives anything else another name."""
    if is_checkpoint(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.rename(path.with_name(f"no_checkpoint_{path.name}_{time.time_ns()}"))


def load_variables(
    workdir: Path, score: str | None, like: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Loads the variables of a run: of its best checkpoint by `score`, or of its last for None.

    Args:
      workdir: of the run.
      score: name of the score by which the run chose its best.
      like: the shapes they must have; None takes any.

    Raises:
      InputError: the run has no checkpoint yet, or one of another shape.
    """
    if not has_checkpoint(workdir):
        raise InputError(
            f"{workdir}: no checkpoint there; train that phase first, or convert again"
        )
    with closing(Checkpoints(workdir, score, read_only=True)) as checkpoints:
        return checkpoints.restore_variables(like)
