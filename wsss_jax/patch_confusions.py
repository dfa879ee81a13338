"""Confusion matrices of each patch of an evaluation, in `confusions.npz`.

Scores of any selection of the patches follow from them, such as those of resampled test sets.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.dataset import load_dataset
from wsss_jax import runs
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


class Scored(NamedTuple):
    """An evaluation: its folder, the classes, and what it counted."""

    folder: Path
    classes: tuple[str, ...]
    confusions: PatchConfusions


def load_scored(folder: Path) -> Scored:
    """Loads what an evaluation counted; errors as of `load`."""
    classes = load_dataset(str(folder / runs.DATASET_FILE), folder).classes
    return Scored(folder, classes, load(folder))


def refuse_other_patches(scored: Scored, first: Scored) -> None:
    """Refuses scores that cannot be compared with the first ones."""
    one, other = scored.confusions, first.confusions
    if (scored.classes, one.names) != (first.classes, other.names):
        raise InputError(
            f"{scored.folder} scored other patches or classes than {first.folder}: evaluate all "
            "variants on the same split of the same data"
        )
    truth, expected = one.counts[0].sum(axis=-1), other.counts[0].sum(axis=-1)
    if (truth != expected).any():
        name = one.names[int((truth != expected).any(axis=-1).argmax())]
        raise InputError(
            f"{scored.folder} was scored on another true mask of {name} than {first.folder}: the "
            "masks have changed in between"
        )
