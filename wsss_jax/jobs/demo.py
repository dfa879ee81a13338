"""Draws tissue, and runs the jobs of the method on it."""

import json
import time
from pathlib import Path

import ml_collections

from data import synthetic
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import jobs, runs
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.jobs import evaluate

NESTED = ("phase1", "masks", "phase2", "evaluate")
FIELDS = {
    "size": rules.integer(32, 1024),
    "train": rules.integer(1, 10**6),
    "val": rules.integer(1, 10**6),
    "test": rules.integer(1, 10**6),
    "seed": rules.SEED,
}


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Draws a data set in `workdir/data`, and does each job in its own folder beside it."""
    start = time.monotonic()
    data_dir = workdir / "data"
    runs.check(config, workdir, started=data_dir.is_dir())
    config_lib.save(config, workdir)
    if not data_dir.is_dir():
        counts = {split: config[split] for split in ("train", "val", "test")}
        synthetic.write_dataset(data_dir, counts, config.size, config.seed)
    nested = complete(config, workdir).jobs
    for name in NESTED:
        print(f"--- {name}", flush=True)
        try:
            jobs.run(nested[name], workdir / name)  # each holds its own folder
        except InputError as error:
            text = config_lib.name_nested(str(error), nested[name], f"jobs.{name}")
            raise InputError(text) from error
    summary = evaluate.summary(workdir / "evaluate") | {"seconds": time.monotonic() - start}
    with atomic_path(workdir / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    print(
        f"demo: mIoU {summary['phase2']:.3f} (phase 1 {summary['phase1']:.3f}, majority class "
        f"{summary['majority']:.3f}) in {summary['seconds']:.0f} s"
    )


def complete(config: ml_collections.ConfigDict, workdir: Path) -> ml_collections.FrozenConfigDict:
    """Names the drawn data and the earlier run to each job."""
    config = config_lib.thaw(config)
    nested = config.jobs
    nested.phase1.data.root = str(workdir / "data")
    nested.phase1.data.patch_size = config.size
    nested.masks.phase1 = nested.evaluate.phase1 = str(workdir / "phase1")
    nested.phase2.masks = str(workdir / "masks")
    nested.evaluate.phase2 = str(workdir / "phase2")
    return config_lib.freeze(config)
