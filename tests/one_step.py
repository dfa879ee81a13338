"""Run by `test_parallel.py` in its own process: a step of both phases on all devices there are.

Arguments: the file to write, beside which the checkpoints go into a folder, and which settings:
"paper", or "all" that may not change with the number of devices, or "histosegnet" for that method
in the place of both phases. The number of simulated
devices comes from XLA_FLAGS, which JAX reads before anything else runs.
"""

import sys
from pathlib import Path

import flax
import jax
import numpy as np
import optax

from data import synthetic
from tests.conftest import draw_variables, tiny_histosegnet, tiny_phase1, tiny_phase2
from wsss_jax import parallel
from wsss_jax.checkpoints import Checkpoints
from wsss_jax.methods import histosegnet, phase1, phase2
from wsss_jax.methods.averaging import average_predictions
from wsss_jax.methods.prediction import Prediction
from wsss_jax.training.divergence import RATE_FACTOR
from wsss_jax.training.step import make_state, train_step

BATCH = 16
REAL = 10  # the others only fill the batch: with 8 devices of 2, three get nothing else

patches = [synthetic.draw_patch(np.random.default_rng(i), 32) for i in range(BATCH)]
images, masks = (np.stack(arrays) for arrays in zip(*patches))
rng = np.random.default_rng(0)
batch = {
    "image": images,
    "label": rng.integers(0, 2, (BATCH, 4)).astype(np.uint8),
    "masks": np.stack([masks, masks[:, ::-1]], axis=1),
    "weight": (np.arange(BATCH) < REAL).astype(np.float32),
    "position": np.arange(BATCH, dtype=np.int32),
}
first, second = tiny_phase1("unused"), tiny_phase2("unused", layers=("b5_2", "bn7"))
third = tiny_histosegnet("unused")
third.model.mean, third.model.std = (0.7,) * 3, (0.2,) * 3
third.loss.class_weights = (1.0, 2.0, 3.0, 4.0)
first_values, ema_decay = {"mu": 0.9}, 0.0
if sys.argv[2] == "all":
    first_values, ema_decay = {"mu": 0.9, "attention_share": 0.5, RATE_FACTOR: 0.5}, 0.5
    first.pda.normalize = True
    second.loss.update({"kind": "symmetric", "dice": 0.5})
    for config in (first, second):
        config.augment.update({"transpose": 0.5, "affine": 0.5, "color": 0.5, "stain": 0.5})
# In float32 rounding grows in so narrow networks: two orders of the same batch on one device differ
# by up to 20 % in the worst gradient.
first.precision = second.precision = third.precision = "float64"
jax.config.update("jax_enable_x64", True)
results = {"devices": jax.local_device_count()}
tasks = [("phase1", phase1, first, first_values), ("phase2", phase2, second, {})]
if sys.argv[2] == "histosegnet":
    tasks = [("histosegnet", histosegnet, third, {})]
for name, method, config, values in tasks:
    built = method.make_task(config, synthetic.DATASET.num_classes, 10)
    # With this optimizer a step moves the parameters by their gradient, which is clipped.
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
    built = built._replace(optimizer=optimizer, ema_decay=ema_decay)
    values = {key: np.float32(value) for key, value in values.items()}
    variables = draw_variables(built.network, np.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    before = make_state(built, variables)
    start = jax.tree.map(np.asarray, before.variables)
    step = parallel.map_train_step(lambda *arguments, built=built: train_step(built, *arguments))
    after = step(before, batch, values, jax.random.key(1))
    results[f"{name}/loss"] = np.asarray(after.sums["epoch"]["loss"])
    checkpoints = Checkpoints(Path(sys.argv[1]).with_suffix("") / name)
    checkpoints.save(after, {}, None)
    checkpoints.close()
    moved = jax.tree.map(lambda a, b: np.asarray(b) - a, start, after.variables)
    for path, value in flax.traverse_util.flatten_dict(moved, sep="/").items():
        results[f"{name}/moved/{path}"] = value


def predict(image: jax.Array) -> Prediction:
    """Logits of four classes that depend on where a pixel is."""
    column = jax.numpy.arange(image.shape[2])
    logits = image @ np.arange(12.0).reshape(3, 4) / 99 + column[:, None] * np.arange(4.0)
    return Prediction(logits.argmax(axis=-1), logits=logits)


def average(variables: dict, batch: dict) -> jax.Array:
    logits = average_predictions(predict, None, batch["image"], "d4").logits
    assert logits is not None
    return logits


results["averaged"] = parallel.map_batch(average)({}, {"image": images})
np.savez(sys.argv[1], **results)
