"""The programs of training, Grad-CAM and slides with shapes for arguments, to count or compile."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.train import CLASSES, PHASES, random_batch, settings
from configs import base
from wsss_jax import cam, masks, parallel, phase1, phase2, pixels, training


class Program(NamedTuple):
    """A function and its arguments, arrays or their shapes; a step is of one replica."""

    function: Callable
    arguments: tuple[Any, ...]


def train_step(phase: int, precision: str, width: float, batch: int, size: int) -> Program:
    """A training step on a global batch; arguments as of `training.train_step`."""
    built = PHASES[phase].phase(settings(phase, precision, width), CLASSES, 1000, None)
    values = {name: np.float32(value) for name, value in built.values(5).items()}
    shapes = _shapes(random_batch(phase, batch, size)), _shapes(values)
    arguments = training.state_shapes(built), *shapes, jax.eval_shape(partial(jax.random.key, 1))
    return Program(partial(training.train_step, built), arguments)


def on_mesh(step: Callable, devices: int) -> Callable:
    """A training step over the first devices, as `jax.pmap` maps it, for the whole batch.

    `jax.pmap` is the same program, but cannot be lowered for a device that is not there.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
    same, shared = PartitionSpec(), PartitionSpec(parallel.AXIS)
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(same, shared, same, same),
        out_specs=same,
        check_vma=False,
    )


def grad_cam(precision: str, width: float, batch: int, size: int) -> Program:
    """Label maps of three layers, as the job `masks` makes them, of `variables, image, label`."""
    config, job = settings(1, precision, width), base.masks("unused")
    model = phase1.build_model(config, CLASSES)

    def label_maps(variables: Any, image: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        maps, _ = cam.grad_cam(model, variables, pixels.scale(image, config.model), job.layers)
        return {
            layer: masks.label_maps(of_layer, label, image.shape[1:3], absent=job.absent)
            for layer, of_layer in maps.items()
        }

    image, label = _shapes([random_batch(1, batch, size)[key] for key in ("image", "label")])
    return Program(label_maps, (training.network_shapes(model), image, label))


def slide_tile(precision: str, width: float, batch: int, size: int) -> Program:
    """Gated label maps of `variables of phase 1, variables of phase 2, image`."""
    first, second = (settings(phase, precision, width) for phase in PHASES)
    classifier, network = (PHASES[p].build_model(c, CLASSES) for p, c in ((1, first), (2, second)))
    options = base.evaluate("unused", "unused").gate

    def label_maps(of_classifier: Any, of_network: Any, image: jax.Array) -> jax.Array:
        scaled = pixels.scale(image, first.model)
        seen, _ = classifier.apply(of_classifier, scaled, train=False)
        logits = phase2.predict(second, network, of_network, image)
        return phase2.gate(logits, jax.nn.sigmoid(seen), **options)

    variables = (training.network_shapes(model) for model in (classifier, network))
    return Program(label_maps, (*variables, _shapes(random_batch(1, batch, size)["image"])))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
