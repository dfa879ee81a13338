"""Stands in for the jobs of a chain, and a chain of the lung configurations."""

from pathlib import Path

import ml_collections
import numpy as np

from configs import repeat as repeat_config
from data.synthetic import DATASET
from wsss_jax import config as config_lib
from wsss_jax import patch_confusions, runs
from wsss_jax.files import hold_lock
from wsss_jax.jobs import repeat
from wsss_jax.patch_confusions import PatchConfusions

STEPS = ("lung_phase1", "lung_masks", "lung_phase2", "lung_evaluate")
NAMES = tuple(f"r{region}_x{left:05d}_y00000" for region in range(3) for left in range(0, 200, 96))


def make_config(*variants: str, seeds: tuple[int, ...] = (0, 1)) -> ml_collections.ConfigDict:
    config = repeat_config.get_config("variants=" + "+".join(variants))
    config.seeds, config.bootstrap.resamples = seeds, 50
    return config


def count(seed: int, better: int) -> PatchConfusions:
    """Counts of two rows: 200 true pixels of each class, of which more than `better` are right."""
    hits = better + np.random.default_rng(seed).integers(1, 60, (2, len(NAMES), 4))
    counts = np.zeros((*hits.shape, 5), int)
    for c in range(4):
        counts[..., c, c], counts[..., c, (c + 1) % 4] = hits[..., c], 200 - hits[..., c]
    return PatchConfusions(("phase 1", "phase 2"), NAMES, counts)


class Fake:
    """Stands for all jobs: notes what is run, and leaves what a job leaves."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails: dict[str, BaseException] = {}  # by the end of the workdir

    def run(self, config: ml_collections.ConfigDict, workdir: Path) -> None:
        if config.job == "repeat":
            repeat.run(config, workdir)
            return
        with hold_lock(workdir / ".lock"):
            name = "/".join(workdir.parts[-3:])
            self.done.append(name)
            runs.save(config, DATASET, workdir)
            for end, error in self.fails.items():
                if name.endswith(end):
                    raise error
            if config.job == "evaluate":
                trained = config_lib.load(Path(config.phase2), "phase2")
                better = int(1000 * trained.optimizer.learning_rate)
                patch_confusions.save(count(trained.seed, better), workdir)
