"""What a run leaves in its workdir for the runs after it: its configuration and its data set."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections
from tqdm import tqdm

from data.dataset import Dataset, load_dataset, save_dataset
from wsss_jax import config as config_lib
from wsss_jax import patch_records
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.patch_records import PatchRecord

DATASET_FILE = "dataset.json"
# Fields that may change between a run and its continuation.
FREE_FIELDS = (
    "log_every",
    "checkpoint_every",
    "accumulate",
    "rematerialize",
    "palette",
    "data.root",
    "data.source",
    "data.workers",
)


def check(config: ml_collections.ConfigDict, workdir: Path, *, started: bool) -> None:
    """Refuses a folder that holds something this run would spoil or could not go on with.

    Args:
      config: of this run.
      workdir: its folder, which may not exist.
      started: whether there are results in it that belong to its settings.

    Raises:
      InputError: names the other job, or the first settings that differ.
    """
    if not (workdir / config_lib.CONFIG_FILE).is_file():
        return
    before = config_lib.load(workdir, "workdir")
    if before.job != config.job:
        raise InputError(
            f"{workdir} holds a run of the job {before.job!r}, this one is {config.job!r}: name "
            "another --workdir"
        )
    changed = [
        line
        for line in config_lib.differences(before, config)
        if line.partition(":")[0] not in FREE_FIELDS
    ]
    if started and changed:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(changed[:3])}): set them as "
            "they were to go on with it, or name another --workdir"
        )


def check_patches(records: Sequence[PatchRecord], workdir: Path, *, started: bool) -> None:
    """Refuses to go on in a folder with other patches than those of its results.

    Args:
      records: of the patches there are now.
      workdir: of the run.
      started: whether there are results in it that were made from patches.

    Raises:
      InputError: names the first patch that is gone, new, or changed.
    """
    before = patch_records.load(workdir) if started else []
    if before is None:
        tqdm.write(
            f"{workdir}: begun by version 0.1, which did not write down its patches: going on "
            "without comparing them"
        )
    elif started and (difference := patch_records.first_difference(before, records)):
        raise InputError(
            f"{workdir} was trained on other patches than there are now ({difference}): restore "
            "them to go on with it, or name another --workdir"
        )


def save(config: ml_collections.ConfigDict, dataset: Dataset, workdir: Path) -> None:
    """Writes `config.json` and `dataset.json` into a run's folder."""
    with atomic_path(workdir / DATASET_FILE) as path:
        save_dataset(dataset, path)
    config_lib.save(config, workdir)


def load(workdir: str, field: str, job: str) -> tuple[ml_collections.ConfigDict, Dataset]:
    """The configuration and data set of an earlier run.

    Args:
      workdir: the run's folder, as the user named it in `field`.
      field: of the configuration, for the message.
      job: what the run must have been.

    Raises:
      InputError: no run there, or one of another job.
    """
    config = config_lib.load(Path(workdir), field)
    if config.job != job:
        raise InputError(
            f"config.{field}: {workdir} is a run of the job {config.job!r}, not {job!r}: "
            f"set --config.{field} to the workdir of one"
        )
    return config, load_dataset(str(Path(workdir) / DATASET_FILE), workdir)


def inherit_data(data: ml_collections.ConfigDict, earlier: ml_collections.ConfigDict) -> None:
    """Fills the empty fields of `config.data` with those of the earlier run's, in place.

    Raises:
      InputError: another data set is named than the earlier run learned.
    """
    for name in ("root", "dataset", "patch_size"):
        if not data[name]:
            data[name] = earlier[name]
    if data.dataset != earlier.dataset:
        raise InputError(
            f"config.data.dataset is {data.dataset!r} but the earlier run learned "
            f"{earlier.dataset!r}: leave the field empty"
        )
    data.resize = data.resize or earlier.resize
