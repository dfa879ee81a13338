"""Figures of the training patches that fields of a method follow from."""

from pathlib import Path

import ml_collections
import numpy as np

from wsss_jax import config as config_lib
from wsss_jax import inputs
from wsss_jax.checkpoints import has_checkpoint
from wsss_jax.methods.contract import Measuring, Method
from wsss_jax.progress import show_progress
from wsss_jax.sources import Batch, Source


def measure(
    config: ml_collections.FrozenConfigDict, workdir: Path, method: Method, source: Source
) -> ml_collections.FrozenConfigDict:
    """Fills the fields that a method measures on its training patches, see `contract.Measuring`.

    A run that goes on takes them from its `config.json`, without reading the patches.

    Args:
      config: of the run; fields that are set, not (), stay as they are.
      workdir: of the run.
      method: of the run; most methods measure nothing.
      source: the training patches.
    """
    if not isinstance(method, Measuring):
        return config
    missing = [field for field in method.MEASURED if config_lib.get(config, field) == ()]
    if not missing:
        return config
    if has_checkpoint(workdir):
        before = config_lib.load(workdir, "workdir")
        if before.job == config.job:  # or else the run is refused, see `runs.check`
            return config_lib.fill(
                config, {field: config_lib.get(before, field) for field in missing}
            )
    values = method.measure(config, *_read(config, source))
    return config_lib.fill(config, {field: values[field] for field in missing})


def _read(config: ml_collections.ConfigDict, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Counts the values of all patches, (256,) int64, and reads their labels, (N, C) uint8."""
    with show_progress(total=len(source), unit="patch", desc="measuring") as bar:

        def count(batch: Batch) -> dict[str, np.ndarray]:
            counts = [np.bincount(image.reshape(-1), minlength=256) for image in batch["image"]]
            bar.update(int(batch["weight"].sum()))
            return {"counts": np.stack(counts).astype(np.int32), "labels": batch["label"]}

        found = inputs.map_patches(source, config.batch_size, count, workers=config.data.workers)
    return found["counts"].sum(axis=0, dtype=np.int64), found["labels"]
