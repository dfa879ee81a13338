"""The jobs a configuration can name: `config.job` -> function(configuration, workdir)."""

import json
import sys
import time
from pathlib import Path
from types import ModuleType

import jax
import ml_collections

from data import folders, synthetic
from data import prepare as data_prepare
from data.dataset import Dataset, load_dataset
from wsss_jax import config as config_lib
from wsss_jax import (
    conversion,
    evaluation,
    inputs,
    parallel,
    phase1,
    phase2,
    pseudo_masks,
    runs,
    signals,
    sources,
    training,
)
from wsss_jax.config_rules import NESTED_JOBS
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.parity import compare as parity
from wsss_jax.report import figures


@runs.holds_workdir
def train_phase1(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Trains the patch classifier."""
    if config.model.batch_norm == "auto":
        config.model.batch_norm = "frozen" if config.init else "trained"
    if config.model.batch_norm == "frozen" and not config.init:
        raise InputError(
            "config.model.batch_norm is 'frozen' but config.init is empty: statistics of random "
            "weights mean nothing, give --config.init or set --config.model.batch_norm=trained"
        )
    if config.accumulate > 1 and config.model.batch_norm == "trained":
        raise _statistics_of_parts(config.accumulate)
    dataset = _training_dataset(config)
    source = sources.open_source(config.data, dataset, "train")
    _train(config, workdir, dataset, phase1, source)


@runs.holds_workdir
def train_phase2(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Trains the segmentation network on the masks of an earlier run, or of a folder."""
    if config.accumulate > 1:
        raise _statistics_of_parts(config.accumulate)
    masks = Path(config.masks)
    is_folder_of_masks = masks.is_dir() and folders.find_pngs(masks)
    if (masks / config_lib.CONFIG_FILE).is_file() or not is_folder_of_masks:
        earlier, dataset = runs.load(config.masks, "masks", "masks")
        runs.inherit_data(config.data, earlier.data)
        mask_dirs = [pseudo_masks.layer_dir(masks, layer) for layer in config.layers]
    else:  # a folder of masks, such as true ones
        dataset = _training_dataset(config)
        mask_dirs = [masks] * len(config.layers)
    source = sources.open_source(config.data, dataset, "train", mask_dirs)
    _train(config, workdir, dataset, phase2, source)


def _statistics_of_parts(accumulate: int) -> InputError:
    return InputError(
        f"config.accumulate is {accumulate} but BatchNorm is trained, whose statistics are of the "
        "whole batch: set --config.accumulate=1 and, to save memory, --config.rematerialize=True"
    )


def _training_dataset(config: ml_collections.ConfigDict) -> Dataset:
    for field in ("root", "patch_size"):
        if not config.data[field]:
            raise InputError(f"config.data.{field} is empty: set --config.data.{field}")
    return load_dataset(config.data.dataset, config.data.root)


def _train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    dataset: Dataset,
    phase: ModuleType,
    source: sources.Source,
) -> None:
    parallel.check_batch_size(config.batch_size, config.accumulate)
    validation = None
    if folders.has_split(config.data.root, "val"):
        validation = sources.open_source(config.data, dataset, "val")
    steps = inputs.count_steps(len(source), config.batch_size, config.drop_last)
    built = phase.phase(config, dataset.num_classes, config.epochs * steps, validation)
    history = training.fit(config, dataset, workdir, built, source, validation)
    if parallel.is_first():
        figures.training_curves(history, workdir / "curves.png", dataset.classes)


@runs.holds_workdir
def make_masks(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the pseudo masks of the training patches."""
    pseudo_masks.run(config, workdir)


@runs.holds_workdir
def evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Scores the trained phases on annotated patches."""
    evaluation.run(config, workdir)


@runs.shares_workdir
def segment(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes tissue maps of whole slides."""
    from wsss_jax.slides import segmentation  # its libraries load slowly, and few jobs need them

    segmentation.run(config, workdir)


def doctor(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Checks the installation and, if one is named, a slide."""
    del workdir  # it only prints
    from wsss_jax import doctor as checks  # as above

    checks.run(config)


def prepare(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Cuts labeled patches out of annotated regions."""
    del workdir  # the patches go to config.out
    dataset = load_dataset(config.dataset, config.images)
    codes = {name: tuple(values) for name, values in config.codes.items()}
    summary = data_prepare.cut_patches(
        Path(config.images),
        Path(config.masks),
        Path(config.out),
        data_prepare.MaskCodes(dataset, codes, tuple(config.excluded)),
        data_prepare.Cutting(
            config.patch,
            config.stride,
            config.resize,
            tuple(config.shares),
            config.seed,
            config.min_share,
        ),
        workers=config.workers,
    )
    config_lib.save(config, Path(config.out))
    print(json.dumps(summary, indent=2))


@runs.holds_workdir
def demo(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Draws tissue and runs the four jobs on it, in folders of `workdir`."""
    start = time.monotonic()
    data_dir = workdir / "data"
    runs.check(config, workdir, started=data_dir.is_dir())
    config_lib.save(config, workdir)
    if not data_dir.is_dir():
        counts = {split: config[split] for split in ("train", "val", "test")}
        synthetic.write_dataset(data_dir, counts, config.size, config.seed)
    jobs = config.jobs
    jobs.phase1.data.root = str(data_dir)
    jobs.phase1.data.patch_size = config.size
    jobs.masks.phase1 = jobs.evaluate.phase1 = str(workdir / "phase1")
    jobs.phase2.masks = str(workdir / "masks")
    jobs.evaluate.phase2 = str(workdir / "phase2")
    for name in NESTED_JOBS["demo"]:
        print(f"--- {name}", flush=True)
        JOBS[name](jobs[name], workdir / name)  # each holds its own folder
    summary = evaluation.summary(workdir / "evaluate") | {"seconds": time.monotonic() - start}
    with atomic_path(workdir / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    print(
        f"demo: mIoU {summary['phase2']:.3f} (phase 1 {summary['phase1']:.3f}, majority class "
        f"{summary['majority']:.3f}) in {summary['seconds']:.0f} s"
    )


@runs.holds_workdir
def compare(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Compares this system's numbers with the reference's; exit code 1 if any differs."""
    if not parity.run(config, workdir):
        sys.exit(1)


# What several processes can share; each of the others is done by one.
SHARED_JOBS = ("phase1", "masks", "phase2", "evaluate")
JOBS: dict[str, runs.Job] = {
    "phase1": train_phase1,
    "masks": make_masks,
    "phase2": train_phase2,
    "evaluate": evaluate,
    "segment": segment,
    "doctor": doctor,
    "prepare": prepare,
    "demo": demo,
    "convert": conversion.convert,
    "export": conversion.export,
    "compare": compare,
}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Does the job that the configuration names.

    Raises:
      InputError: something the user can mend.
    """
    if jax.process_count() > 1 and config.job not in SHARED_JOBS:
        raise InputError(
            f"the job {config.job!r} is done by one process: start it without --coordinator, or "
            "outside of the launcher"
        )
    if jax.process_count() > 1 and config.job not in ("phase1", "phase2"):
        signals.restore_handlers()  # JAX has taken SIGTERM, which only training asks it for
    JOBS[config.job](config, workdir)
