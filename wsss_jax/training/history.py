"""The history of a run: the figures of each epoch, in `history.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

FILE = "history.json"
RESTORED = "restored"  # in an epoch's figures: when training failed and went back into it
SCORE = "miou"  # the figure of the validation by which the best checkpoint is kept
SMOOTHED = "smoothed_miou"  # its mean over the last epochs
_WINDOW = 3  # epochs
_SELECTING = {"best": SCORE, "smoothed": SMOOTHED, "last": None}
_TAKEN = {
    "best": "the best",
    "smoothed": f"the one with the best mean of {_WINDOW} epochs",
    "last": "the last",
}


def selecting_score(config: ml_collections.ConfigDict) -> str | None:
    """Returns the figure by which a run selects its checkpoint; None where that is the last."""
    return _SELECTING[config.select]


def count_epochs(config: ml_collections.ConfigDict) -> int:
    """Returns how many epochs a run trains: all of its schedule, or fewer where it stops early."""
    return min(config.epochs, config.get("stop_epoch", 0) or config.epochs)


def smooth(scores: Sequence[float | None]) -> float:
    """Returns the mean of the last three scores, or of those that are known; NaN without any.

    The best of many noisy scores is the luckiest: a mean over epochs swings less.
    """
    known = _drop_unknown(scores[-_WINDOW:])
    return sum(known) / len(known) if known else float("nan")


def _drop_unknown(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None and not np.isnan(score)]


def describe_selection(history: Sequence[Mapping[str, Any]], select: str) -> str:
    """Describes the scores among which a run selects its checkpoint, in one line; "" without any.

    Args:
      history: of all epochs.
      select: the field `config.select`.
    """
    scores = [record.get(SCORE) for record in history]
    known = _drop_unknown(scores)
    if not known:
        return ""
    best, last = max(known), smooth(scores[-1:])
    return (
        f"validation mIoU: best {best:.4f} (epoch {scores.index(best) + 1}), last {last:.4f}, mean "
        f"of the last {min(_WINDOW, len(scores))} {smooth(scores):.4f}; later jobs take "
        f"{_TAKEN[select]}: config.select is {select!r}"
    )


def save(history: Sequence[Mapping[str, Any]], workdir: Path) -> None:
    """Writes the figures of the finished epochs."""
    with atomic_path(workdir / FILE) as path:
        path.write_text(json.dumps(_without_nan(history), indent=1) + "\n")


def load(workdir: Path) -> list[dict[str, Any]] | None:
    """Reads the figures of the finished epochs; None where there is no file.

    Raises:
      InputError: the file is damaged.
    """
    path = Path(workdir) / FILE
    if not path.is_file():
        return None
    try:
        history = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); restore it, or remove it") from error
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise InputError(f"{path}: not a list of epochs; restore it, or remove it")
    return history


def _without_nan(value: Any) -> Any:
    """Replaces undefined figures by null, which JSON can say."""
    if isinstance(value, Mapping):
        return {name: _without_nan(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value
