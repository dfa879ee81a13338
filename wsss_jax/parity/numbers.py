"""Computes this system's numbers on given weights and images, under the names of `golden`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import base
from wsss_jax import cam, masks, metrics, parallel, pixels, schedules, sources
from wsss_jax.interop.torch_names import to_flax, to_torch
from wsss_jax.methods import phase1, phase2
from wsss_jax.methods.contract import load_method
from wsss_jax.methods.gate import Gate
from wsss_jax.parity import golden
from wsss_jax.training.step import apply_gradients, compute_gradients, make_state

Numbers = dict[str, np.ndarray]
OnDevice = Mapping[str, jax.Array]  # a batch
# Of the weights (by name, in PyTorch's layout).
Compute = Callable[[Mapping[str, np.ndarray]], Numbers]

_CAM_THRESHOLD = 0.25
_GROUPS = {1: ("weight", "bias", "head_weight", "head_bias"), 2: ("weight", "head_weight")}


def make_config(phase: int, precision: str) -> ml_collections.ConfigDict:
    """Makes the configuration of the numbers: the released code's, without random draws."""
    if phase == 1:
        config = base.phase1("", "reference")
        config.model.batch_norm = "frozen"
        config.init = "given"  # so the first blocks are frozen
        config.cam.threshold = _CAM_THRESHOLD
    else:
        config = base.phase2("given", "reference")
        config.layers = golden.TARGET_LAYERS[::-1]  # the white of the last one counts
        config.layer_weights = (0.2, 0.2, 0.6)
    config.precision = precision
    config.model.dropout_rates = (0.0, 0.0, 0.0)
    config.optimizer.learning_rate = golden.LEARNING_RATE[phase]
    config.augment.update({"flip_horizontal": 0.0, "flip_vertical": 0.0, "blur": 0.0})
    return config


def make_compute(
    phase: int,
    num_classes: int,
    images: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    config: ml_collections.ConfigDict,
) -> Compute:
    """Makes a function of the weights that computes all numbers, whole, in PyTorch's layout.

    Args:
      phase: 1 or 2.
      num_classes: C.
      images: (N, H, W, 3) uint8.
      inputs: the `golden.INPUTS` of the phase.
      config: from `make_config`. The precision "float64" must be enabled in JAX.
    """
    dtype = np.dtype("float64" if config.precision == "float64" else "float32")
    batch = {"image": images}
    if phase == 1:
        batch = _fill_batch(batch | {"label": inputs["labels"]})
        forward = _make_phase1(num_classes, config, batch)
    else:
        # To the order of `config.layers`, examples first.
        targets = inputs["targets"][::-1].swapaxes(0, 1)
        batch = _fill_batch(batch | {"masks": targets, "probability": inputs["gate/probability"]})
        forward = _make_phase2(num_classes, config, batch)
    values = {"mu": np.array(golden.MU, dtype)} if phase == 1 else {}
    train = _make_training(phase, num_classes, config, batch, values)

    def compute(state_dict: Mapping[str, np.ndarray]) -> Numbers:
        variables = to_flax({name: array.astype(dtype) for name, array in state_dict.items()})
        return forward(variables) | train(variables) | _score(inputs, num_classes)

    return compute


def _fill_batch(batch: dict[str, np.ndarray]) -> sources.Batch:
    """Repeats the last example until the local devices can share the batch."""
    examples = len(batch["image"])
    devices = jax.local_device_count()
    rows = np.minimum(np.arange(-(-examples // devices) * devices), examples - 1)
    weight = (np.arange(len(rows)) < examples).astype(np.float32)
    arrays = {name: array[rows] for name, array in batch.items()}
    return arrays | {"weight": weight, "position": np.arange(len(rows), dtype=np.int32)}


def _make_phase1(
    num_classes: int, config: ml_collections.ConfigDict, batch: sources.Batch
) -> Callable[[Any], Numbers]:
    model = phase1.build_network(config, num_classes)
    size = batch["image"].shape[1:3]

    @parallel.map_batch
    def classify(variables: Any, batch: OnDevice) -> dict[str, jax.Array]:
        image = pixels.scale(batch["image"], config.model)
        logits, taps = model.apply(variables, image, train=False)
        class_weights = variables["params"]["fc8"]["kernel"][0, 0]
        activation = cam.class_activation_maps(taps["bn7"], class_weights, relu=True)
        probability = jax.nn.sigmoid(logits)
        taps["bn7_relu"] = taps.pop("bn7")
        return {f"forward/{name}": _to_nchw(value) for name, value in taps.items()} | {
            "forward/cam": activation,
            "forward/logits": logits,
            "forward/probability": probability,
            "phase1_segmentation": masks.segmentation(
                activation, probability, size, _CAM_THRESHOLD
            ),
            "phase1_segmentation_label": (probability > _CAM_THRESHOLD).astype(logits.dtype),
        }

    @parallel.map_batch
    def compute_maps(variables: Any, batch: OnDevice) -> dict[str, jax.Array]:
        image = pixels.scale(batch["image"], config.model)
        by_layer, _ = cam.grad_cam(model, variables, image, golden.CAM_LAYERS)
        numbers = {}
        for layer, maps in by_layer.items():
            numbers[f"gradcam/{layer}"] = masks.resize_maps(maps, size)
            if layer in golden.MASK_LAYERS:
                tissue = masks.label_maps(maps, batch["label"], size, absent="zero")
                numbers[f"pseudo_mask/bcss/{layer}"] = tissue
        return numbers

    @parallel.map_batch
    def attend(bound: tuple[Any, jax.Array], batch: OnDevice) -> dict[str, jax.Array]:
        variables, mu = bound
        image = pixels.scale(batch["image"], config.model)
        logits, taps = model.apply(variables, image, train=True, mu=mu)
        return {"logits": logits, "attended": _to_nchw(taps["attended"])}

    white = np.stack([masks.find_white_background(image) for image in batch["image"]])

    def compute(variables: Any) -> Numbers:
        by_batch = classify(variables, batch) | compute_maps(variables, batch)
        for layer in golden.MASK_LAYERS:
            tissue = by_batch[f"pseudo_mask/bcss/{layer}"]
            by_batch[f"pseudo_mask/luad/{layer}"] = np.where(white, np.uint8(num_classes), tissue)
        dtype = by_batch["forward/logits"].dtype
        for mu in golden.MUS:
            attended = attend((variables, dtype.type(mu)), batch)
            by_batch |= {f"pda/{mu}/{name}": value for name, value in attended.items()}
        numbers = {}
        for name, value in _drop_repeated(by_batch, batch).items():
            if golden.get_kind(name) in ("forward", "pda"):
                numbers[name] = value
            else:
                numbers |= {f"{name}/{index}": array for index, array in enumerate(value)}
        return numbers

    return compute


def _make_phase2(
    num_classes: int, config: ml_collections.ConfigDict, batch: sources.Batch
) -> Callable[[Any], Numbers]:
    model = phase2.build_network(config, num_classes)
    training_model = phase2.build_network(config, num_classes, parallel.AXIS)
    gate = Gate.of(base.evaluate("", "", "reference").gate)

    @parallel.map_batch
    def segment(variables: Any, batch: OnDevice) -> dict[str, jax.Array]:
        image = pixels.scale(batch["image"], config.model)
        logits, taps = model.apply(variables, image, train=False)
        (training_logits, _), _ = training_model.apply(
            variables, image, train=True, weight=batch["weight"], mutable=["batch_stats"]
        )
        return {f"forward/{name}": _to_nchw(value) for name, value in taps.items()} | {
            "forward/logits": _to_nchw(logits),
            "forward/prediction": logits.argmax(axis=-1).astype(jnp.uint8),
            "gate/prediction_reference": gate.segment(logits, batch["probability"]),
            "train/logits": _to_nchw(training_logits),
        }

    return lambda variables: _drop_repeated(segment(variables, batch), batch)


def _make_training(
    phase: int,
    num_classes: int,
    config: ml_collections.ConfigDict,
    batch: sources.Batch,
    values: Mapping[str, np.ndarray],
) -> Callable[[Any], Numbers]:
    """Makes a function that takes optimizer steps on all examples as one batch."""
    total = golden.TOTAL_STEPS[phase]
    task = load_method(f"phase{phase}").make_task(config, num_classes, total)

    @parallel.map_train_step
    def step(*arguments: Any) -> tuple[Any, Any]:
        state = arguments[0]
        gradients, batch_stats, parts = compute_gradients(task, *arguments)
        state = apply_gradients(task, state, gradients, batch_stats)
        return state, (gradients, parts)

    rates = schedules.learning_rates(config.optimizer, total)
    groups = [rates[name] for name in _GROUPS[phase]]

    def train(variables: Any) -> Numbers:
        state = make_state(task, variables)
        numbers: Numbers = {}
        parts = []
        for index in range(golden.STEPS):
            state, (gradients, part) = step(state, batch, values, jax.random.key(0))
            parts.append(part)
            if index == 0:
                numbers |= _name_tensors("grad", {"params": gradients})
                if phase == 2:  # in phase 1 they are frozen
                    running = {"batch_stats": state.variables["batch_stats"]}
                    numbers |= _name_tensors("running", running)
        numbers |= _name_tensors("after3", {"params": state.variables["params"]})
        numbers["train/losses"] = np.array([part["loss"] for part in parts])
        if phase == 2:
            names = [f"loss_{layer}" for layer in golden.TARGET_LAYERS]
            numbers["train/loss_parts"] = np.array([[part[n] for n in names] for part in parts])
        numbers["train/learning_rates"] = np.array(
            [[rate(index) for rate in groups] for index in range(golden.STEPS)]
        )
        return numbers

    return train


def _score(inputs: Mapping[str, np.ndarray], num_classes: int) -> Numbers:
    """Scores a recorded prediction: IoU per class, FwIoU, mIoU, ACC, mean class accuracy."""
    if "metrics/gt" not in inputs:
        return {}
    confusion = metrics.confusion_matrices(
        inputs["metrics/gt"], inputs["metrics/prediction"], num_classes
    )
    scores = metrics.segmentation_scores(np.asarray(confusion).sum(axis=0, dtype=np.int64))
    values = [*scores["iou"], *(scores[name] for name in ("fwiou", "miou", "acc", "class_acc"))]
    return {f"metrics/phase{phase}": np.array(values) for phase in (1, 2)}


def _drop_repeated(by_batch: Numbers, batch: sources.Batch) -> Numbers:
    """Leaves out the examples that only fill the batch."""
    return {name: value[batch["weight"] > 0] for name, value in by_batch.items()}


def _name_tensors(prefix: str, variables: Mapping[str, Any]) -> Numbers:
    return {f"{prefix}/{name}": value for name, value in to_torch(variables).items()}


def _to_nchw(value: jax.Array) -> jax.Array:
    return jnp.moveaxis(value, -1, 1)
