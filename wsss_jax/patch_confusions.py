"""Confusion matrices of each patch of an evaluation, in `confusions.npz`.

Scores of any selection of the patches follow from them, such as those of resampled test sets.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

FILE = "confusions.npz"


class PatchConfusions(NamedTuple):
    """What an evaluation counted.

    Attributes:
      rows: names of the R rows of its table, without the majority class.
      names: stems of the N patches.
      counts: (R, N, C, C + 1) int32, rows truth, columns prediction; see `metrics`.
    """

    rows: tuple[str, ...]
    names: tuple[str, ...]
    counts: np.ndarray


def save(confusions: PatchConfusions, workdir: Path) -> None:
    """Writes `confusions.npz` into the folder of an evaluation."""
    with atomic_path(workdir / FILE) as path:
        np.savez_compressed(
            path,
            rows=np.array(confusions.rows),
            names=np.array(confusions.names),
            counts=confusions.counts.astype(np.int32),
        )


def load(workdir: Path) -> PatchConfusions:
    """Loads the confusion matrices of an evaluation.

    Raises:
      InputError: there are none, as of versions before this file, or the file is damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        raise InputError(f"{path} is missing: run that evaluation again")
    try:
        with np.load(path) as arrays:
            counts = arrays["counts"]
            rows, names = (tuple(arrays[name].tolist()) for name in ("rows", "names"))
        if counts.ndim != 4 or counts.shape[:2] != (len(rows), len(names)):
            raise ValueError(f"counts of the shape {counts.shape}")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); run that evaluation again") from error
    return PatchConfusions(rows, names, counts)
