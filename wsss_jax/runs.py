"""What a run leaves in its workdir for the runs after it: its configuration and its data set."""

from pathlib import Path

import ml_collections

from data.dataset import Dataset, load_dataset, save_dataset
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError

DATASET_FILE = "dataset.json"
# Fields that may change between a run and its continuation.
FREE_FIELDS = ("log_every", "data.root", "data.source", "data.workers")


def check(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuses a folder that holds a run with other settings, which could not be gone on with.

    Raises:
      InputError: names the first fields that differ.
    """
    if not (workdir / config_lib.CONFIG_FILE).is_file():
        return
    before = config_lib.load(workdir, "workdir")
    changed = [
        line
        for line in config_lib.differences(before, config)
        if line.partition(":")[0] not in FREE_FIELDS
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(changed[:3])}): set them as "
            "they were to go on with it, or name another --workdir"
        )


def save(config: ml_collections.ConfigDict, dataset: Dataset, workdir: Path) -> None:
    """Writes `config.json` and `dataset.json` into a run's folder."""
    config_lib.save(config, workdir)
    save_dataset(dataset, workdir / DATASET_FILE)


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
    """Fills the empty fields of `config.data` with those of the earlier run's, in place."""
    for name in ("root", "dataset", "patch_size"):
        if not data[name]:
            data[name] = earlier[name]
