"""Clusters the training patches of each class by the features of a trained run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from wsss_jax import clusters, inputs, parallel, patch_records, runs
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax.files import atomic_path
from wsss_jax.kmeans import KMeans, cluster_classes
from wsss_jax.progress import show_progress
from wsss_jax.sources import Batch, Source, open_source
from wsss_jax.training.task import DeviceBatch, Variables
from wsss_jax.training.trained import Trained, load_trained

SHARED = True
FIELDS = {
    **rules.DATA,
    "run": rules.NAME,
    "k": rules.integer(2, 4096),
    "seed": rules.SEED,
    "starts": rules.integer(1, 1000),
    "max_iterations": rules.integer(1, 10**6),
    "batch_size": rules.integer(1, rules.MOST_EXAMPLES),
}
_STAMP = "weights.txt"  # which weights the clusters are of


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes `clusters.csv`, the cluster of each training patch within each of its classes.

    What is finished is not done again, unless the patches or the weights have changed since.
    """
    trained = load_trained(config.run, "run", "features")
    data = runs.inherit_data(config.data, trained.config.data)
    config, dataset = config_lib.replace(config, data=data), trained.dataset
    parallel.check_batch_size(config.batch_size)
    source = open_source(config.data, dataset, "train")
    runs.check(config, workdir, started=(workdir / clusters.FILE).is_file())
    stamp = f"CRC-32 of the weights: {trained.sum_weights():08x}\n"
    is_finished = _is_finished(workdir, source, stamp)
    parallel.wait_for_all("looked at the workdir")
    if is_finished:
        tqdm.write(f"{workdir}: the clusters of these weights and patches are there already")
        return
    if parallel.is_first():
        (workdir / clusters.FILE).unlink(missing_ok=True)
        runs.save(config, dataset, workdir)
        patch_records.save(source.records, workdir)
        with atomic_path(workdir / _STAMP) as path:
            path.write_text(stamp)
    features, labels = compute_features(config, trained, source)
    if parallel.is_first():
        settings = KMeans(config.k, config.seed, config.starts, config.max_iterations)
        with show_progress(total=dataset.num_classes, unit="class") as bar:
            found = cluster_classes(features, labels, settings, lambda class_index: bar.update())
        clusters.save(found, source.names, dataset, workdir)
        _report(found, dataset.classes, config.k)
    # JAX ends all processes five minutes after the first of them has ended.
    parallel.wait_for_all("clustered")


def compute_features(
    config: ml_collections.ConfigDict, trained: Trained, source: Source
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the pooled features (N, D) float32 of patches, and reads their labels (N, C).

    Over the local devices, in every process.
    """

    def pool(variables: Variables, batch: DeviceBatch) -> dict:
        return {"features": trained.pool_features(variables, batch["image"])}

    mapped = partial(parallel.map_batch(pool), trained.variables)
    with show_progress(total=len(source), unit="patch") as bar:

        def compute(batch: Batch) -> dict[str, np.ndarray]:
            computed = mapped(batch)
            bar.update(int((batch["weight"] > 0).sum()))
            return {**computed, "label": batch["label"]}

        size, workers = config.batch_size, config.data.workers
        whole = inputs.map_patches(source, size, compute, workers=workers)
    return whole["features"].astype(np.float32, copy=False), whole["label"]


def _is_finished(workdir: Path, source: Source, stamp: str) -> bool:
    """Tells whether a folder has the clusters of these weights and patches."""
    path = workdir / _STAMP
    return (
        (workdir / clusters.FILE).is_file()
        and path.is_file()
        and path.read_bytes() == stamp.encode()
        and patch_records.load(workdir) == list(source.records)
    )


def _report(found: np.ndarray, classes: Sequence[str], count: int) -> None:
    """Prints the size of each cluster, and says so where there are fewer than wanted."""
    for index, name in enumerate(classes):
        sizes = np.bincount(found[found[:, index] >= 0, index])
        listed = ", ".join(map(str, sorted(sizes.tolist(), reverse=True))) or "no patches"
        print(f"{name}: {len(sizes)} clusters ({listed})")
        if len(sizes) < count:
            patches = int(sizes.sum())
            same = "" if len(sizes) == patches else ", some of which look the same to the network"
            tqdm.write(
                f"{name}: {patches} patches have this class{same}, so it has {len(sizes)} clusters "
                f"instead of {count}"
            )
