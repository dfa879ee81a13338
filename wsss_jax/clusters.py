"""The clusters of a data set's patches: their file, and training on them as sub-categories."""

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from data.dataset import Dataset
from wsss_jax import patch_records, runs
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.patch_records import PatchRecord
from wsss_jax.sources import ExtendedSource, Source
from wsss_jax.spreadsheets import escape_text, write_rows

FILE = "clusters.csv"  # in the folder of a run of the job `cluster`
_FIRST_COLUMN = "patch"


def save(clusters: np.ndarray, names: Sequence[str], dataset: Dataset, workdir: Path) -> None:
    """Writes `clusters.csv`: a row for each patch, with its cluster in the column of each class.

    Args:
      clusters: (N, C) int, -1 where a patch has not the class.
      names: of the patches.
      dataset: of the classes.
      workdir: of the job `cluster`.
    """
    header = [_FIRST_COLUMN, *map(escape_text, dataset.classes)]
    rows = (
        [escape_text(name), *(None if cluster < 0 else cluster for cluster in row)]
        for name, row in zip(names, clusters.tolist(), strict=True)
    )
    with atomic_path(workdir / FILE) as path, path.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [header, *rows])


def load(workdir: Path, dataset: Dataset, count: int, names: Sequence[str]) -> np.ndarray:
    """Reads what `save` wrote.

    Args:
      workdir: of the job `cluster`.
      dataset: of the classes.
      count: k, the most clusters of a class.
      names: of the patches.

    Returns:
      (N, C) int, in the order of `names`.

    Raises:
      InputError: there is no such file, it is damaged, or of other patches or classes.
    """
    path = workdir / FILE
    remedy = "run the job 'cluster' again"
    if not path.is_file():
        raise InputError(f"{workdir} has no {FILE}: its job is not finished, {remedy}")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        by_name = {row[0]: [int(cell) if cell else -1 for cell in row[1:]] for row in rows}
        if header != [_FIRST_COLUMN, *map(escape_text, dataset.classes)]:
            raise ValueError("its columns are not patch and the classes of the data set")
        missing = [name for name in names if escape_text(name) not in by_name]
        if missing or len(by_name) != len(names):
            raise ValueError(f"it has {len(by_name)} of {len(names)} patches")
        clusters = np.array([by_name[escape_text(name)] for name in names], np.int32)
        if clusters.shape != (len(names), dataset.num_classes):
            raise ValueError("a row has too few or too many cells")
        if clusters.min() < -1 or clusters.max() >= count:
            raise ValueError(f"a cluster is not a number of 0 to {count - 1}")
    except (ValueError, IndexError, OverflowError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}): {remedy}") from error
    return clusters


def make_sub_labels(clusters: np.ndarray, count: int) -> np.ndarray:
    """Makes labels (N, C * k) uint8, k for each class in turn, of clusters (N, C) below k.

    Each class of a patch has one sub-category; that of index -1 has none.
    """
    of_class = clusters[:, :, None] == np.arange(count)
    return of_class.reshape(len(clusters), -1).astype(np.uint8)


def complete(config: ml_collections.ConfigDict) -> Dataset:
    """Completes, in place, the data and the number of sub-categories by the run `config.clusters`.

    Returns:
      The data set whose patches were clustered.

    Raises:
      InputError: no such run, one of another data set, or of another number than is set.
    """
    earlier, dataset = runs.load(config.clusters, "clusters", "cluster")
    if config.model.sub_categories not in (0, earlier.k):
        raise InputError(
            f"config.model.sub_categories is {config.model.sub_categories}, but each class of "
            f"{config.clusters} has {earlier.k}: set --config.model.sub_categories=0 to take "
            "these, or name other --config.clusters"
        )
    config.data = runs.inherit_data(config.data, earlier.data)
    config.model.sub_categories = earlier.k
    return dataset


def extend(source: Source, config: ml_collections.ConfigDict, dataset: Dataset) -> Source:
    """Adds "sub_label" (C * k,) uint8 to the patches of a method that learns `config.clusters`.

    Other methods, and training without clusters, get the source itself.

    Raises:
      InputError: the clusters are damaged, not finished, or of other patches.
    """
    if not config.get("clusters"):
        return source
    workdir, count = Path(config.clusters), config.model.sub_categories
    clustered = patch_records.load(workdir) or []
    if difference := patch_records.find_difference(clustered, source.records):
        raise InputError(
            f"config.clusters: {workdir} was made of other patches than there are now "
            f"({difference}): restore them, or cluster them again"
        )
    labels = make_sub_labels(load(workdir, dataset, count, source.names), count)
    return ExtendedSource(source, "sub_label", labels, _add_checksums(source.records, labels))


def _add_checksums(records: Sequence[PatchRecord], labels: np.ndarray) -> list[PatchRecord]:
    """Adds the checksums of labels to records: a run continues with the same ones only."""
    return [
        record._replace(checksum=f"{record.checksum}{zlib.crc32(row.tobytes()):08x}")
        for record, row in zip(records, labels, strict=True)
    ]
