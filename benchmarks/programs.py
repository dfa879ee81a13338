"""Programs of training, Grad-CAM and slides with shapes as arguments, to count or compile."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks import train
from configs import base
from wsss_jax import cam, masks, parallel, pixels
from wsss_jax.methods import phase1
from wsss_jax.methods.gate import Gate
from wsss_jax.state import network_shapes
from wsss_jax.training import step


class Program(NamedTuple):
    """A function and its arguments, arrays or their shapes; a step is that of one replica."""

    function: Callable
    arguments: tuple[Any, ...]


def make_train_step(phase: int, precision: str, width: float, batch: int, size: int) -> Program:
    """Makes a training step on a global batch; its arguments are those of `step.train_step`."""
    built = train.build_phase(phase, precision, width)
    inputs = _shapes((train.draw_batch(phase, batch, size), train.make_values(built)))
    arguments = step.state_shapes(built), *inputs, jax.eval_shape(partial(jax.random.key, 1))
    return Program(partial(step.train_step, built), arguments)


def map_on_mesh(function: Callable, devices: int) -> Callable:
    """Maps a training step over the first devices, as `jax.pmap` does, for the whole batch.

    `jax.pmap` gives the same program, but cannot lower it for a device that is missing.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
    same, shared = PartitionSpec(), PartitionSpec(parallel.AXIS)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(same, shared, same, same),
        out_specs=same,
        check_vma=False,
    )


def make_grad_cam(precision: str, width: float, batch: int, size: int) -> Program:
    """Makes the program of `variables, image, label` to label maps of three layers."""
    config, job = train.make_config(1, precision, width), base.masks("unused")
    model = phase1.build_network(config, train.CLASSES)

    def make_label_maps(variables: Any, image: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        maps, _ = cam.grad_cam(model, variables, pixels.scale(image, config.model), job.layers)
        return {
            layer: masks.label_maps(of_layer, label, image.shape[1:3], absent=job.absent)
            for layer, of_layer in maps.items()
        }

    image, label = _shapes([train.draw_batch(1, batch, size)[key] for key in ("image", "label")])
    return Program(make_label_maps, (network_shapes(model), image, label))


def make_slide_tile(precision: str, width: float, batch: int, size: int) -> Program:
    """Makes the program of `variables of both phases, image` to gated label maps."""
    first, second = (train.make_config(phase, precision, width) for phase in train.PHASES)
    classifier, network = (
        train.PHASES[p].build_network(c, train.CLASSES) for p, c in ((1, first), (2, second))
    )
    gate = Gate.of(base.evaluate("unused", "unused").gate)

    def make_label_maps(of_classifier: Any, of_network: Any, image: jax.Array) -> jax.Array:
        seen, _ = classifier.apply(of_classifier, pixels.scale(image, first.model), train=False)
        logits, _ = network.apply(of_network, pixels.scale(image, second.model), train=False)
        return gate.segment(logits, jax.nn.sigmoid(seen))

    image = _shapes(train.draw_batch(1, batch, size)["image"])
    return Program(make_label_maps, (network_shapes(classifier), network_shapes(network), image))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
