"""Run by `test_sccam_training.py` in its own process: a step of SC-CAM on all devices there are.

Argument: the file to write. The number of simulated devices comes from XLA_FLAGS.
"""

import sys

import flax
import jax
import numpy as np
import optax

from data import synthetic
from tests.conftest import tiny_sccam
from wsss_jax import parallel
from wsss_jax.methods import sccam
from wsss_jax.training.initialization import initialize_variables
from wsss_jax.training.step import make_state, train_step

BATCH, K = 16, 3
REAL = 10  # the others only fill the batch

classes = synthetic.DATASET.num_classes
images = np.stack([synthetic.draw_patch(np.random.default_rng(i), 32)[0] for i in range(BATCH)])
rng = np.random.default_rng(0)
labels = rng.integers(0, 2, (BATCH, classes)).astype(np.uint8)
clusters = np.where(labels, rng.integers(0, K, labels.shape), -1)
batch = {
    "image": images,
    "label": labels,
    "sub_label": (clusters[:, :, None] == np.arange(K)).reshape(BATCH, -1).astype(np.uint8),
    "weight": (np.arange(BATCH) < REAL).astype(np.float32),
    "position": np.arange(BATCH, dtype=np.int32),
}
config = tiny_sccam("unused", 1)
config.model.batch_norm, config.model.sub_categories = "trained", K
config.precision = "float64"  # in float32 rounding grows in so narrow networks
jax.config.update("jax_enable_x64", True)
# With this optimizer a step moves the parameters by their gradient.
task = sccam.make_task(config, classes, 10)._replace(optimizer=optax.sgd(1.0))
variables, _ = initialize_variables(config, task.network)
variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
state = make_state(task, variables)
step = parallel.map_train_step(lambda *given: train_step(task, *given))
after = step(state, batch, {}, jax.random.key(1))
results = {"devices": jax.local_device_count()}
for name, value in after.sums["epoch"].items():
    results[f"metrics/{name}"] = np.asarray(value)
moved = jax.tree.map(lambda a, b: np.asarray(b) - a, variables, after.variables)
for path, value in flax.traverse_util.flatten_dict(moved, sep="/").items():
    results[f"moved/{path}"] = value


def pool(variables: dict, batch: dict) -> jax.Array:
    network = sccam.build_network(config, classes)
    return sccam.pool_features(config, network, variables, batch["image"])


results["features"] = parallel.map_batch(pool)(variables, {"image": images})
np.savez(sys.argv[1], **results)
