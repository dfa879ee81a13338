"""Run by `test_processes.py`, in one process or in two that share the work.

Arguments: how many processes there are, which this is, the port of the first, the drawn data set,
the finished runs, the folder to write to. Trains the tiny network of `short_run`, opens and scores
the finished runs, and notes which patches this process read.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from configs import base
from wsss_jax import inputs, jobs, parallel

processes, process, port = map(int, sys.argv[1:4])
root, runs, out = map(Path, sys.argv[4:7])
if processes > 1:
    parallel.start(f"127.0.0.1:{port}", processes, process)

from tests import short_run  # noqa: E402 - it computes, which only a joined process may

flags.FLAGS.mark_as_parsed()
assert (jax.process_count(), jax.process_index()) == (processes, process)

source = list(range(11))
seen = [
    (batch["index"], batch["weight"], batch["position"])
    for batch in inputs.read_batches(
        [{"index": np.int32(i)} for i in source], 4, workers=0, order=inputs.Order(seed=1, epochs=2)
    )
]
np.savez(out / f"seen{process}.npz", *map(np.stack, zip(*seen)))

jax.config.update("jax_compilation_cache_dir", str(out / f"cache{process}"))
short_run.train(root, 0, out / "run")

opening = base.masks(str(runs / "phase1"))
opening.data.workers, opening.batch_size, opening.sheet_patches = 0, 8, 2
jobs.run(opening, out / "masks")

scoring = base.evaluate(str(runs / "phase1"), str(runs / "phase2"))
scoring.data.workers, scoring.batch_size, scoring.sheet_patches = 0, 4, 2
jobs.run(scoring, out / "evaluate")
