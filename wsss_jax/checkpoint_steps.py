"""Which folders are complete checkpoints: what Orbax reads of every step when it starts."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from tqdm import tqdm

METADATA = "_CHECKPOINT_METADATA"  # in every checkpoint of Orbax
_FILES = {METADATA, "commit_success.txt", "variables", "training", "meta", "metrics"}
_READ_ERRORS = ValueError, TypeError, KeyError, OSError, RecursionError  # on damaged files


class CompleteSteps:
    """Orbax's naming of steps without incomplete and damaged ones.

    The naming of Orbax is an interface; its methods have the names that Orbax calls.
    """

    def __init__(self, score: str | None):
        """With `score`, steps whose validation has no number by that name are damaged too."""
        self._score, self._names = score, ocp.path.step.standard_name_format()
        self._reported: set[Path] = set()

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
            except _READ_ERRORS as error:
                if path not in self._reported:
                    tqdm.write(
                        f"{path} is not a complete checkpoint ({format_error(error)}); skipped"
                    )
                self._reported.add(path)

    def _check_score(self, path: Path) -> None:
        scores = path / "metrics" / "metrics"
        if self._score is not None and scores.is_file():
            score = json.loads(scores.read_bytes())[self._score]
            if type(score) not in (int, float) or not math.isfinite(score):
                raise ValueError(f"its {self._score} is {score!r}")


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, or the rest of one whose deletion was interrupted."""
    try:
        names = set() if path.is_symlink() else set(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):  # a running training deletes old ones
        return False
    return bool(names) and names <= _FILES


def remove_deleted(folder: Path) -> None:
    """Removes the rest of old checkpoints whose deletion was interrupted.

    The newest one, even if it is damaged, stays.
    """
    steps = {int(path.name): path for path in folder.glob("*") if path.name.isdecimal()}
    complete = [step for step, path in steps.items() if _is_complete(path)]
    for step, path in steps.items():
        if step < max(complete, default=0) and step not in complete and is_checkpoint(path):
            shutil.rmtree(path)


def format_error(error: Exception) -> str:
    """Formats an error of Orbax or TensorStore in one short line."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in str(error):  # somewhere in the text of TensorStore
            return os.strerror(number)
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check_files(path: Path) -> None:
    """Checks the files that Orbax reads of every step when it starts.

    Raises:
      ValueError, OSError: a file is missing or damaged.
    """
    if not isinstance(json.loads((path / METADATA).read_bytes())["commit_timestamp_nsecs"], int):
        raise ValueError(f"{METADATA} is damaged")
    for item in ("variables", "meta"):
        if not (path / item).is_dir():
            raise ValueError(f"{item} is missing")
    scores = path / "metrics" / "metrics"
    if scores.parent.is_dir() and not isinstance(json.loads(scores.read_bytes()), dict):
        raise ValueError("its scores are damaged")


def _is_complete(path: Path) -> bool:
    try:
        _check_files(path)
    except _READ_ERRORS:
        return False
    return True
