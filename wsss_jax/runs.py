"""The folder of a run: who may work in it, and what it holds for the runs after it."""

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from data.dataset import Dataset, load_dataset, save_dataset
from wsss_jax import config as config_lib
from wsss_jax import jobs, parallel, patch_records
from wsss_jax.errors import InputError
from wsss_jax.files import (
    LOCK,
    atomic_path,
    check_utf8,
    check_writable,
    clear_unfinished,
    find_unfinished,
    hold_lock,
)
from wsss_jax.patch_records import PatchRecord

Job = Callable[[ml_collections.ConfigDict, Path], Any]

DATASET_FILE = "dataset.json"
PSEUDO_MASKS = "train_PM"
RELABELED = "phase2"  # the one layer of the masks that phase 2 gives for a further round
# Fields of a data set that say what labels and mask values mean.
MEANING = ("classes", "white", "label_notation", "present_share")
# Fields that may change between a run and its continuation.
FREE_FIELDS = (
    "log_every",
    "checkpoint_every",
    "on_divergence",
    "pda.collapse_steps",
    "accumulate",
    "rematerialize",
    "convolutions.table",  # a run goes on with the ways that it has taken from it
    "palette",
    "min_share",  # `relabel` sorts its masks again
    "stop_epoch",  # what is trained on from there is what it would have been without the stop
    # Where earlier runs and patches lie, which may be moved: they are known by checksums.
    "run",
    "init",
    "clusters",
    "phase1",
    "phase2",
    "masks",
    "data.root",
    "data.more",
    "data.source",
    "data.workers",
)
# Of these, what decides to which checkpoint a run goes back when training fails.
FIXED_IN_RESTORING = ("checkpoint_every", "pda.collapse_steps")


def layer_dir(workdir: Path, layer: str) -> Path:
    """Returns the folder of a layer's masks: `train_PM/PM_<layer>`, as in the reference."""
    return Path(workdir) / PSEUDO_MASKS / f"PM_{layer}"


def left_out_dir(workdir: Path) -> Path:
    """Returns the folder of the masks of patches that are not trained on."""
    return Path(workdir) / PSEUDO_MASKS / "left_out"


def holds_workdir(job: Job, *, shared: bool = False) -> Job:
    """Makes a job hold the folder that it writes to: no other job works in it meanwhile.

    Args:
      job: the function of a job, `run(config, workdir)`.
      shared: processes that do this job may share the folder; others are kept out.
    """

    @functools.wraps(job)
    def held_job(config: ml_collections.ConfigDict, workdir: Path) -> Any:
        folder, flag = config_lib.find_folder(config, workdir)
        with _hold(folder, flag, shared=shared):
            return job(config, workdir)

    return held_job


shares_workdir = functools.partial(holds_workdir, shared=True)


@contextlib.contextmanager
def _hold(workdir: Path, flag: str, *, shared: bool) -> Iterator[None]:
    """Holds a folder; of several processes of a run, the first does so for all of them.

    Args:
      workdir: the folder.
      flag: that names it, for messages.
      shared: as of `holds_workdir`.

    Raises:
      InputError: it holds something else, or another process works in it.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if parallel.is_first():
            try:
                check_utf8(workdir)
                check_writable(workdir)
                _refuse_foreign(workdir, flag)
                if shared:
                    _clear_if_alone(workdir)
                stack.enter_context(hold_lock(workdir / LOCK, shared=shared))
                if not shared:
                    clear_unfinished(workdir)
            except (InputError, OSError) as error:
                problem = error
        if parallel.gather(np.array(problem is not None)).any():
            raise problem or InputError(f"{workdir}: see what the first process says")
        yield


def _clear_if_alone(workdir: Path) -> None:
    """Removes what killed processes left, unless others are at work and may be writing it."""
    if not any(find_unfinished(workdir)):
        return
    with contextlib.suppress(InputError), hold_lock(workdir / LOCK) as held:
        if held:
            clear_unfinished(workdir)


def _refuse_foreign(workdir: Path, flag: str) -> None:
    """Refuses a folder with files of something else.

    Every job writes `config.json` before any other file but hidden ones and locks.
    """
    if not workdir.is_dir() or (workdir / config_lib.CONFIG_FILE).is_file():
        return  # `check` reads it
    for path in sorted(workdir.iterdir()):
        if not path.name.startswith(".") and _has_files(path):
            raise InputError(
                f"{workdir} holds no run ({config_lib.CONFIG_FILE} is missing) but other files, "
                f"such as {path.name}: name another {flag}, or an empty folder"
            )


def _has_files(path: Path) -> bool:
    """Tells whether a path is a file, or a folder with any below it but the locks of slides."""
    if not path.is_dir():
        return True
    return any(set(files) - {"lock"} for _, _, files in os.walk(path, followlinks=True))


def check(
    config: ml_collections.ConfigDict, workdir: Path, *, started: bool, trained: bool = False
) -> None:
    """Refuses a folder that holds something this run would damage or could not go on with.

    Args:
      config: of this run.
      workdir: its folder, which may not exist.
      started: whether there are results in it that belong to its settings.
      trained: whether it is of a method that is trained to the end, so that fields of which only
        its label maps are made may change (`contract.Method.MAP_FIELDS`).

    Raises:
      InputError: names the other job, or the first settings that differ.
    """
    if not (workdir / config_lib.CONFIG_FILE).is_file():
        return
    before = config_lib.load(workdir, "workdir")
    if before.job != config.job:
        flag = config_lib.find_folder(config, workdir)[1]
        raise InputError(
            f"{workdir} holds a run of the job {before.job!r}, this one is {config.job!r}: name "
            f"another {flag}"
        )
    free = set(FREE_FIELDS)
    if before.get("on_divergence") == "restore":
        free.difference_update(FIXED_IN_RESTORING)
    of_maps = getattr(jobs.specification(config.job), "MAP_FIELDS", ())
    if trained:
        free.update(of_maps)
    for field in ("init", "clusters"):  # none or some: not moved ones
        if bool(before.get(field)) != bool(config.get(field)):
            free.discard(field)
    changed = {line.partition(":")[0]: line for line in config_lib.differences(before, config)}
    changed = {field: line for field, line in changed.items() if field not in free}
    if started and changed:
        when = (
            " (they may change once all its epochs are trained)"
            if set(changed) <= set(of_maps)
            else ""
        )
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join([*changed.values()][:3])}): "
            f"set them as they were to go on with it{when}, or name another --workdir"
        )


def check_dataset(dataset: Dataset, workdir: Path, *, started: bool) -> None:
    """Refuses to go on in a folder whose results mean other classes.

    Raises:
      InputError: names the field of the description that differs.
    """
    if not started:
        return
    before = load_dataset(str(workdir / DATASET_FILE), workdir)
    for field in MEANING:
        was, is_now = getattr(before, field), getattr(dataset, field)
        if was != is_now:
            raise InputError(
                f"{workdir} was trained with {field} {was} of the data set, now its description "
                f"says {is_now}: set it as it was to go on, or name another --workdir"
            )


def check_patches(
    config: ml_collections.ConfigDict,
    records: Sequence[PatchRecord],
    workdir: Path,
    *,
    started: bool,
) -> None:
    """Refuses to go on in a folder with other patches, masks or clusters than those of its results.

    Args:
      config: of the run; its `masks` or `clusters` is the folder of those.
      records: of the patches there are now.
      workdir: of the run.
      started: whether there are results in it that were made from patches.

    Raises:
      InputError: names the first patch that is gone, new, or changed, or the folder whose masks or
        clusters have changed.
    """
    before = patch_records.load(workdir) if started else []
    if before is None:
        tqdm.write(
            f"{workdir}: begun by version 0.1, which did not record its patches: they are not "
            "compared"
        )
    elif started and (difference := patch_records.find_difference(before, records)):
        field = next((name for name in ("clusters", "masks") if config.get(name)), "")
        if field and (name := patch_records.find_relearned(before, records)):
            raise InputError(
                f"config.{field}: {config[field]} has other {field} than {workdir} was trained on "
                f"(those of {name} have changed): set --config.{field} to a folder that has the "
                "same, or name another --workdir to train on these"
            )
        onward = ""
        if "init" in config:
            onward = f", to which --config.init={workdir} gives the weights of this one"
        raise InputError(
            f"{workdir} was trained on other patches than there are now ({difference}): restore "
            f"them to go on with it, or name another --workdir{onward}"
        )


def save(config: ml_collections.ConfigDict, dataset: Dataset, workdir: Path) -> None:
    """Writes `config.json` and `dataset.json` into a run's folder."""
    config_lib.save(config, workdir)  # first: by it the folder is known as that of a run
    with atomic_path(workdir / DATASET_FILE) as path:
        save_dataset(dataset, path)


def load(
    workdir: str, field: str, wanted: str | Collection[str]
) -> tuple[ml_collections.FrozenConfigDict, Dataset]:
    """Loads the configuration and data set of an earlier run.

    Args:
      workdir: the run's folder, as the user named it in `field`.
      field: of the configuration, for the message.
      wanted: the jobs of which it must be.

    Raises:
      InputError: no run there, or one of another job.
    """
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    check_utf8(workdir)
    config = config_lib.load(Path(workdir), field)
    if config.job not in wanted:
        raise InputError(
            f"config.{field}: {workdir} is a run of the job {config.job!r}, not "
            f"{' or '.join(map(repr, wanted))}: set --config.{field} to the workdir of one"
        )
    return config, load_dataset(str(Path(workdir) / DATASET_FILE), workdir)


def inherit_data(
    data: ml_collections.ConfigDict, earlier: ml_collections.ConfigDict
) -> ml_collections.FrozenConfigDict:
    """Returns `config.data` with its empty fields as in the earlier run.

    Raises:
      InputError: another data set is named than the earlier run learned.
    """
    inherited = {
        name: data[name] or earlier[name]
        for name in ("root", "dataset", "patch_size", "resize", "more")
    }
    if inherited["dataset"] != earlier.dataset:
        raise InputError(
            f"config.data.dataset is {data.dataset!r} but the earlier run learned "
            f"{earlier.dataset!r}: leave the field empty"
        )
    return config_lib.replace(data, **inherited)
