"""Checkpoints: the state of a run with its position, by Orbax."""

import errno
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers
from tqdm import tqdm

from wsss_jax import parallel
from wsss_jax.errors import InputError
from wsss_jax.state import State

FOLDER = "checkpoints"
METADATA = "_CHECKPOINT_METADATA"  # in every checkpoint of Orbax
_DAMAGES = ValueError, TypeError, KeyError, OSError, RecursionError  # what reading them raises
_CHECKSUMS = "checksums"  # in the file `meta`: Orbax does not notice damaged values of arrays
_FILES = {METADATA, "commit_success.txt", "variables", "training", "meta", "metrics"}


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has a checkpoint, whole or damaged; one being written has another name."""
    return any(
        path.name.isdecimal() and _is_ours(path) for path in (Path(workdir) / FOLDER).glob("*")
    )


def _is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint, or what is left of one that was being deleted."""
    names = set(os.listdir(path)) if path.is_dir() and not path.is_symlink() else set()
    return bool(names) and names <= _FILES


def _check_files(path: Path) -> None:
    """Looks at what Orbax reads of every step at the start.

    Raises:
      ValueError, OSError: a file is missing or damaged.
    """
    if not isinstance(json.loads((path / METADATA).read_bytes())["commit_timestamp_nsecs"], int):
        raise ValueError(f"{METADATA} is damaged")
    for item in ("variables", "meta"):
        if not (path / item).is_dir():
            raise ValueError(f"there is no {item} in it")
    scores = path / "metrics" / "metrics"
    if scores.parent.is_dir() and not isinstance(json.loads(scores.read_bytes()), dict):
        raise ValueError("its figures are damaged")


def _is_whole(path: Path) -> bool:
    try:
        _check_files(path)
    except _DAMAGES:
        return False
    return True


def _remove_remains(folder: Path) -> None:
    """Removes old checkpoints that a killed process was deleting; not the newest, if damaged."""
    steps = {int(path.name): path for path in folder.glob("*") if path.name.isdecimal()}
    whole = [step for step, path in steps.items() if _is_whole(path)]
    for step, path in steps.items():
        if step < max(whole, default=0) and step not in whole and _is_ours(path):
            shutil.rmtree(path)


class _WholeSteps:
    """Orbax's naming of steps; what has such a name but is no whole checkpoint is passed over."""

    def __init__(self, score: str | None):
        self._score, self._names, self._told = score, ocp.path.step.standard_name_format(), set()

    def build_name(self, step: int) -> str:
        return self._names.build_name(step)

    def find_step(self, base_path: Any, step: int) -> ocp.path.step.Metadata:
        return self._names.find_step(base_path, step)

    def find_all(self, base_path: Any) -> Iterator[ocp.path.step.Metadata]:
        for path in sorted(Path(base_path).glob("*")):
            if not (path.name.isdecimal() and path.name == str(int(path.name))):
                continue
            try:
                _check_files(path)
                self._check_score(path)
                yield self.find_step(base_path, int(path.name))
            except _DAMAGES as error:
                if path not in self._told:
                    tqdm.write(f"{path} is no whole checkpoint ({_first_line(error)}); left aside")
                self._told.add(path)

    def _check_score(self, path: Path) -> None:
        scores = path / "metrics" / "metrics"
        if self._score is not None and scores.is_file():
            score = json.loads(scores.read_bytes())[self._score]
            if type(score) not in (int, float) or not math.isfinite(score):
                raise ValueError(f"its {self._score} is {score!r}")


class Checkpoints:
    """The checkpoints of one run: the newest two and, where validation gives `score`, the best.

    Two, so that there is one to go back to if the newest is damaged.

    `read_only` neither makes the folder nor clears what an interrupted save or deletion left in it.
    """

    def __init__(self, workdir: Path, score: str | None = None, *, read_only: bool = False):
        def metric(scores: Mapping[str, float]) -> float:
            return scores[score]

        policies: list = [checkpoint_managers.LatestN(2)]
        if score is not None:
            best = checkpoint_managers.BestN(
                get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
            )
            policies.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=metric if score is not None else None,
            step_name_format=_WholeSteps(score),
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=False,
            create=not read_only,
        )
        self._score = score
        self._path = (Path(workdir) / FOLDER).absolute()
        if not read_only and parallel.is_first():
            _remove_remains(self._path)
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
        """Writes the state under its step.

        Args:
          state: as training left it.
          meta: anything JSON can say, returned by `restore`.
          scores: the figures in which `score` is looked up; None in the middle of an epoch.

        Raises:
          InputError: it could not be written; those before are as they were.
        """
        trees = {"variables": state.variables}
        if state.opt_state is not None:
            trees["training"] = _training(state)
        checksums = {item: _checksums(tree) for item, tree in trees.items()}
        items = {
            item: ocp.args.StandardSave(parallel.to_global(tree)) for item, tree in trees.items()
        }
        items["meta"] = ocp.args.JsonSave({**meta, _CHECKSUMS: checksums})
        try:
            step = int(state.step)
            if step in self._manager.all_steps():  # a damaged one that was gone back from
                self._manager.delete(step)
            elif parallel.is_first():
                self._clear_way(self._path / str(step))
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=scores, force=True)
        except Exception as error:  # TensorStore and Orbax raise many kinds, such as ValueError
            if parallel.is_first():  # what was written of it takes the room that is short
                for path in self._path.glob(f"{int(state.step)}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            raise InputError(
                f"{self._path}: the checkpoint of step {int(state.step)} could not be written "
                f"({_first_line(error)}): free some space or make the folder writable, then give "
                "the same command again; the checkpoints before it are kept"
            ) from error

    def _clear_way(self, path: Path) -> None:
        """Removes a damaged checkpoint; what is none gets another name."""
        if _is_ours(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.rename(path.with_name(f"no_checkpoint_{path.name}_{time.time_ns()}"))

    def best(self) -> int | None:
        """Step of the checkpoint with the highest score, None without any."""
        return self._manager.best_step()

    def restore_best_variables(self, like: dict[str, Any] | None) -> dict[str, Any]:
        """The variables of the checkpoint with the highest score of those that are whole.

        Raises:
          InputError: none has a score yet, none of them is whole, or they hold another network.
        """
        scores = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scores = {step: figures[self._score] for step, figures in scores.items() if figures}
        if not scores and self._manager.all_steps():
            raise InputError(
                f"{self._path}: no checkpoint there was validated, as they are at the end of each "
                "epoch: go on with the training of this run until then"
            )
        steps = sorted(scores, key=lambda step: (scores[step], step), reverse=True)
        return self._first_whole(steps, lambda step: self.restore_variables(step, like))

    def restore_latest(self, like: State) -> tuple[State, dict]:
        """The newest state that is whole, and its `meta`; damaged ones are told of.

        Raises:
          InputError: none is whole, or they hold another network.
        """
        return self._newest_whole(lambda step: self.restore(step, like))

    def restore_latest_variables(self, like: dict[str, Any] | None) -> dict[str, Any]:
        """The variables of the newest checkpoint that is whole.

        Raises:
          InputError: none is whole, or they hold another network.
        """
        return self._newest_whole(lambda step: self.restore_variables(step, like))

    def _newest_whole(self, restore: Callable[[int], Any]) -> Any:
        return self._first_whole(sorted(self._manager.all_steps(), reverse=True), restore)

    def _first_whole(self, steps: Sequence[int], restore: Callable[[int], Any]) -> Any:
        for step in steps:
            try:
                return restore(step)
            except InputError:
                raise
            except Exception as error:  # whatever Orbax stumbles over in a damaged folder
                tqdm.write(
                    f"{self._path / str(step)} is damaged ({_first_line(error)}); going back to "
                    "another checkpoint"
                )
        raise InputError(
            f"{self._path}: no checkpoint there is whole: name another --workdir, or remove this "
            "one to start anew"
        )

    def restore(self, step: int, like: State) -> tuple[State, dict]:
        """The state and `meta` of a step; `like` is a state with the shapes it must have.

        Raises:
          InputError: the checkpoint holds a network of another shape, or weights only.
        """
        is_there = (self._path / str(step) / "training").is_dir()
        if not is_there and step == 0:
            raise InputError(
                f"{self._path.parent} holds converted weights, no training to go on with: name "
                "another --workdir and start from them with --config.init"
            )
        if not is_there:
            raise ValueError("there is no training in it")
        self._check_shapes(step, like.variables)
        training = _training(like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_abstract(like.variables)),
                training=ocp.args.StandardRestore(_abstract(training)),
                meta=ocp.args.JsonRestore(),
            ),
        )
        meta = dict(restored["meta"])
        if not isinstance(meta.get("history"), list):
            raise ValueError("there is no history in it")
        trees = parallel.to_local({name: restored[name] for name in ("variables", "training")})
        _check_arrays(trees, meta.pop(_CHECKSUMS, None))
        return State(variables=trees["variables"], **trees["training"]), meta

    def restore_variables(self, step: int, like: dict[str, Any] | None) -> dict[str, Any]:
        """The variables alone, without what only training needs.

        Raises:
          InputError: the checkpoint holds a network of another shape than `like`.
        """
        if like is None:
            like = self._manager.item_metadata(step)["variables"].tree
        else:
            self._check_shapes(step, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_abstract(like)), meta=ocp.args.JsonRestore()
            ),
        )
        variables = parallel.to_local(restored["variables"])
        _check_arrays({"variables": variables}, restored["meta"].get(_CHECKSUMS))
        return variables

    def close(self) -> None:
        self._manager.close()

    def _check_shapes(self, step: int, like: dict[str, Any]) -> None:
        found = _shapes(self._manager.item_metadata(step)["variables"].tree)
        expected = _shapes(like)
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise InputError(
                    f"{self._path / str(step)}: parameter {name} has the shape "
                    f"{found.get(name, 'none')} in the checkpoint and {expected.get(name, 'none')} "
                    "in this network: set config.model and the data set as they were when it was "
                    "trained, or take another --workdir"
                )


def _training(state: State) -> dict[str, Any]:
    """What only training needs."""
    return {"step": state.step, "opt_state": state.opt_state, "sums": state.sums}


def _arrays(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.ascontiguousarray(leaf)


def _checksums(tree: Any) -> dict[str, str]:
    """Name -> dtype and CRC-32 of every array of a tree: "float32 89abcdef"."""
    return {
        name: f"{array.dtype} {zlib.crc32(array.ravel().view(np.uint8)):08x}"
        for name, array in _arrays(tree)
    }


def _check_arrays(trees: Mapping[str, Any], checksums: Any) -> None:
    """Looks for damaged arrays, by the checksums under which they were saved.

    Where there are none, as in checkpoints of version 0.1, or the arrays come in another dtype than
    that of the file, only values that are not finite can be told.

    Raises:
      ValueError: in all processes, if one of them has found any.
    """
    problem = None
    for item, tree in trees.items():
        arrays, found = dict(_arrays(tree)), _checksums(tree)
        written = dict.fromkeys(found, "") if checksums is None else checksums[item]
        for name in found | written:
            now, then = found.get(name, ""), written.get(name, "none")
            if now.split()[:1] == then.split()[:1]:
                is_whole = now == then
            else:
                is_whole = then != "none" and name in arrays and _is_finite(name, arrays[name])
            if not is_whole:
                problem = problem or f"{item}: {name} is not what was written"
    if parallel.gather(np.array(problem is not None)).any():
        raise ValueError(problem or "another process found a damaged array")


def _is_finite(name: str, array: np.ndarray) -> bool:
    if name.startswith("sums/") or not jax.dtypes.issubdtype(array.dtype, np.inexact):
        return True  # figures may be undefined
    return bool(np.isfinite(array).all())


def _first_line(error: Exception) -> str:
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in str(error):  # somewhere in what TensorStore says
            return os.strerror(number)
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def _abstract(tree: Any) -> Any:
    sharding = parallel.global_sharding()  # whatever devices wrote it
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def load_variables(
    workdir: Path, score: str | None, like: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The variables of a finished run: of its best checkpoint by `score`, or its last for None.

    Args:
      workdir: of the run.
      score: the figure by which the run chose its best.
      like: the shapes they must have; None takes them as they are.

    Raises:
      InputError: the run has no checkpoint yet, or one of another shape.
    """
    if not has_checkpoint(workdir):
        raise InputError(
            f"{workdir}: no checkpoint there; train that phase first, or convert again"
        )
    checkpoints = Checkpoints(workdir, score, read_only=True)
    try:
        if score is None:
            return checkpoints.restore_latest_variables(like)
        return checkpoints.restore_best_variables(like)
    finally:
        checkpoints.close()
