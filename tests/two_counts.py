"""Run by `test_parallel.py` in a process of its own: both phases on all devices there are.

Arguments: data folder, folder of masks, file to write. The number of simulated devices comes from
XLA_FLAGS, which JAX reads before anything else runs.
"""

import sys
from pathlib import Path

import flax
import jax
import numpy as np

from data.dataset import load_dataset
from tests.conftest import tiny_phase1, tiny_phase2
from wsss_jax import inputs, phase1, phase2, training
from wsss_jax.checkpoints import Checkpoints

root, masks, out = map(Path, sys.argv[1:])
dataset = load_dataset("", root)
results = {"devices": jax.local_device_count()}
first, second = tiny_phase1(root), tiny_phase2(str(masks), layers=("truth",))
second.data.root, second.data.patch_size = first.data.root, first.data.patch_size
first.batch_size, first.drop_last = 8, False
for name, phase, config, mask_dirs in (
    ("phase1", phase1, first, ()),
    ("phase2", phase2, second, (masks,)),
):
    source = inputs.open_source(config.data, dataset, "train", mask_dirs)
    validation = inputs.open_source(config.data, dataset, "val")
    steps = inputs.steps_per_epoch(len(source), config.batch_size, drop_last=False)
    # So small networks amplify rounding at every step; with short steps it stays rounding.
    config.optimizer.learning_rate = 1e-4
    built = phase.phase(config, dataset, config.epochs * steps, validation)
    before = training.initial_state(built, config.seed).variables
    workdir = out.parent / f"{out.stem}_{name}"
    history = training.fit(config, workdir, built, source)
    results[f"{name}/loss"] = [figures["loss"] for figures in history]
    results[f"{name}/acc"] = [figures["acc"] for figures in history]
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(checkpoints.latest(), training.initial_state(built, 0))[0]
    for key, tree in (("before", before), ("after", state.variables)):
        for path, value in flax.traverse_util.flatten_dict(tree, sep="/").items():
            results[f"{name}/{key}/{path}"] = np.asarray(value)
np.savez(out, **results)
