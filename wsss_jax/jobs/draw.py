"""Draws a data set: tissue of four classes, its truth known at every pixel."""

from pathlib import Path

import ml_collections

from data import synthetic
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import runs

DATA = "data"  # the data set, in the workdir
_COUNT = rules.integer(1, 10**6)
FIELDS = {
    "size": rules.integer(32, 1024),
    "train": _COUNT,
    "val": _COUNT,
    "test": _COUNT,
    # Not `seed`: chains over seeds train on one data set, and compare on one.
    "data_seed": rules.SEED,
}


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Draws the data set into `workdir/data`, with true masks of the training patches, too.

    One that is there already is left as it is.
    """
    folder = workdir / DATA
    runs.check(config, workdir, started=folder.is_dir())
    config_lib.save(config, workdir)
    if not folder.is_dir():
        counts = {split: config[split] for split in ("train", "val", "test")}
        synthetic.write_dataset(folder, counts, config.size, config.data_seed, train_masks=True)
    print(f"{folder}: {config.train} training, {config.val} validation, {config.test} test patches")
