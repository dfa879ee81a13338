"""Measures training steps and forward passes per second, beside the same network in PyTorch.

python -m benchmarks.train --phase=1 --batch=20

A step is that of training: augmentation on the device, forward and backward pass, optimizer; in
phase 1 the first layers are frozen, as from pretrained weights. If PyTorch is installed, it runs in
turn with ours: as the paper trains it (float32, NCHW, eager; without augmentation) and tuned
(channels_last, torch.compile and, on a GPU, TF32 and bfloat16 autocast).
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from benchmarks import measure
from configs import base
from wsss_jax import config as config_lib
from wsss_jax import parallel, pixels
from wsss_jax.methods import phase1, phase2
from wsss_jax.training.step import make_state, train_step
from wsss_jax.training.task import Task

CLASSES = 4
MU = 0.9
PHASES = {1: phase1, 2: phase2}


class Way(NamedTuple):
    """An implementation to measure: `step()` and `forward()` wait for their results."""

    name: str
    step: Callable[[], None]
    forward: Callable[[], None]


class Ours:
    """This project's training step and forward pass; `step_flops`, `forward_flops` count both."""

    def __init__(self, phase: int, precision: str, width: float, batch: dict[str, np.ndarray]):
        config = make_config(phase, precision, width)
        built = build_phase(phase, precision, width)
        self._state = make_state(built, init_variables(built.network))
        self._batch = batch
        self._rest = make_values(built), jax.random.key(1)
        self._step = parallel.map_train_step(partial(train_step, built))
        model = PHASES[phase].build_network(config, CLASSES)

        def forward(variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
            image = pixels.scale(batch["image"], config.model)
            return model.apply(variables, image, train=False)[0]

        self._forward = parallel.map_batch(forward)
        sharded = parallel.shard(batch)
        self.step_flops = measure.count_flops(map_step(built), self._state, sharded, *self._rest)
        mapped = jax.pmap(forward, parallel.AXIS, in_axes=(None, 0))
        image = {"image": sharded["image"]}
        self.forward_flops = measure.count_flops(mapped, self._state.variables, image)

    def step(self) -> None:
        self._state = self._step(self._state, self._batch, *self._rest)
        jax.block_until_ready(self._state)

    def forward(self) -> None:
        self._forward(self._state.variables, {"image": self._batch["image"]})


def make_config(phase: int, precision: str, width: float) -> ml_collections.ConfigDict:
    """Makes the configuration of a training that starts from pretrained weights."""
    config = base.phase1("luad_histoseg") if phase == 1 else base.phase2("unused")
    config.precision = precision
    config.model.width = width
    if phase == 1:
        config.model.batch_norm = "frozen"
        config.init = "pretrained"  # not read here; it freezes the first layers
    config_lib.validate(config)
    return config


def build_phase(phase: int, precision: str, width: float) -> Task:
    """Builds what training needs of a phase, for a run of 1000 steps."""
    return PHASES[phase].make_task(make_config(phase, precision, width), CLASSES, 1000)


def make_values(task: Task) -> dict[str, np.float32]:
    """Makes the scalars, such as mu, that the loss gets in epoch 5."""
    return {name: np.float32(value) for name, value in task.values(5, 0).items()}


def map_step(task: Task, **options: Any) -> Any:
    """Maps the training step of a replica with `jax.pmap`; takes further options of it."""
    step = partial(train_step, task)
    axes = (None, 0, None, None)
    return jax.pmap(step, parallel.AXIS, in_axes=axes, out_axes=None, **options)


def init_variables(model: nn.Module) -> dict[str, Any]:
    """Draws random weights of a network."""
    init = jax.jit(partial(model.init, train=False))
    # The default generator would compile a program for every parameter.
    return init(jax.random.key(0, impl="rbg"), np.zeros((1, 64, 64, 3), np.float32))


def draw_batch(phase: int, batch: int, size: int) -> dict[str, np.ndarray]:
    """Draws a batch like those of the loader."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "image": rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, 2, (batch, CLASSES), dtype=np.uint8),
        "weight": np.ones(batch, np.float32),
        "position": np.arange(batch, dtype=np.int32),
    }
    if phase == 2:
        arrays["masks"] = rng.integers(0, CLASSES + 1, (batch, 3, size, size), dtype=np.uint8)
    return arrays


def make_torch_ways(phase: int, width: float, batch: dict[str, np.ndarray]) -> Iterator[Way]:
    """Yields PyTorch as the paper uses it, and tuned."""
    import torch

    from wsss_jax.parity import torch_networks, torch_numbers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"

    def make_way(name: str, *, tuned: bool) -> Way:
        torch.manual_seed(0)
        network = torch_networks.ResNet38 if phase == 1 else torch_networks.DeepLabV3Plus
        model = network(CLASSES, width).to(device).train()
        optimizer = getattr(torch_numbers, f"make_phase{phase}_optimizer")(model)
        layout = torch.channels_last if tuned else torch.contiguous_format
        model = model.to(memory_format=layout)
        run = torch.compile(model) if tuned else model
        image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device)
        label = torch.from_numpy(batch["label"]).float().to(device)
        weights = torch.tensor([0.2, 0.2, 0.6], device=device)
        masks = None
        if phase == 2:
            masks = torch.from_numpy(batch["masks"]).long().transpose(0, 1).to(device)

        def compute_logits(*arguments: float) -> torch.Tensor:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tuned
            torch.backends.cudnn.benchmark = tuned
            x = (image.float() / 255).contiguous(memory_format=layout)
            reduced = torch.autocast(device, torch.bfloat16) if tuned and on_gpu else nullcontext()
            with reduced:
                return run(x, *arguments)[0].float()

        def step() -> None:
            model.train()
            if phase == 1:
                loss = torch.nn.functional.multilabel_soft_margin_loss(compute_logits(MU), label)
            else:
                loss = (weights * torch_numbers.layer_losses(compute_logits(), masks)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if on_gpu:
                torch.cuda.synchronize()

        def forward() -> None:
            model.eval()
            with torch.no_grad():
                compute_logits().cpu()

        return Way(name, step, forward)

    yield make_way("PyTorch, as the paper", tuned=False)
    reduced = "TF32, bfloat16, " if on_gpu else ""
    yield make_way(f"PyTorch, tuned ({reduced}channels_last, compile)", tuned=True)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for every batch size, direction and implementation."""
    rows = []
    rates = {precision: measure.measure_product_rate(precision) for precision in args.precision}
    for size in args.batch:
        batch = draw_batch(args.phase, size, args.size)
        ours = {p: Ours(args.phase, p, args.width, batch) for p in args.precision}
        ways = [Way(f"ours, {p}", way.step, way.forward) for p, way in ours.items()]
        if args.torch:
            ways += make_torch_ways(args.phase, args.width, batch)
        one = next(iter(ours.values()))
        for direction, flops in (("forward", one.forward_flops), ("step", one.step_flops)):
            seconds = measure.time_in_turn(
                {way.name: getattr(way, direction) for way in ways}, args.repeats
            )
            paper = seconds.get("PyTorch, as the paper")
            for name, time in seconds.items():
                rate = rates.get(name.removeprefix("ours, "))
                rows.append(
                    {
                        "what": direction,
                        "batch": size,
                        "way": name,
                        "s": time,
                        "images/s": size / time,
                        "TFLOP/s": flops / time / 1e12,
                        "of matrix product": rate and flops / time / rate,
                        "x the paper's way": paper and paper / time,
                    }
                )
    return rows


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    precisions = ("float32", "tensorfloat32", "bfloat16")
    parser = measure.make_parser(__doc__)
    parser.add_argument("--phase", type=int, choices=(1, 2), default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[2 if on_cpu else 20])
    parser.add_argument(
        "--precision", nargs="+", choices=precisions, default=precisions[: 1 if on_cpu else 3]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    args = parser.parse_args()
    args.torch = measure.use_torch(args.torch)
    measure.report("train", vars(args), run(args))


if __name__ == "__main__":
    main()
