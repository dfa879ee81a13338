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
SCORE = "miou"  # the figure of the validation by which the best checkpoint is kept


def selecting_score(config: ml_collections.ConfigDict) -> str | None:
    """Returns the figure by which a run selects its checkpoint; None where that is the last."""
    return SCORE if config.select == "best" else None


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
