"""Measures the convolutions of both networks one by one: XLA's own, ours and PyTorch's.

python -m benchmarks.convolutions --batch 2

The distinct shapes come from the networks as they run. They are measured in turn, in float32 on
the CPU:

    XLA       what XLA makes of the convolution or of its gradient
    product   the matrix products of `wsss_jax.models.cpu_convolution`, whatever the shape
    copied    the same with a transposed copy of the input (kernel gradient)
    inside    a product for each position in the kernel, over the pixels that it meets
    PyTorch   NCHW, eager

"used" names the way that training takes for the shape. It should be the fastest of ours, which
the thresholds in `cpu_convolution` decide; the sums over a network at the end show the difference.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from benchmarks import measure
from benchmarks.train import CLASSES, PHASES, make_config
from wsss_jax.models import convolution, cpu_convolution
from wsss_jax.models.cpu_convolution import Direction
from wsss_jax.models.layers import Conv

DIRECTIONS: tuple[Direction, ...] = ("forward", "input gradient", "kernel gradient")
WAYS = ("XLA", "product", "copied", "inside", "PyTorch")


class Shape(NamedTuple):
    """A convolution of an image (height, width, channels) to `features` channels."""

    height: int
    width: int
    channels: int
    features: int
    size: int
    stride: int
    dilation: int

    def __str__(self) -> str:
        text = f"{self.size}x{self.size}, {self.channels} to {self.features} at {self.height}"
        text += f", stride {self.stride}" if self.stride > 1 else ""
        return text + (f", dilation {self.dilation}" if self.dilation > 1 else "")


def list_shapes(phase: int, size: int, width: float) -> dict[str, Shape]:
    """Lists the convolutions of a phase's network on images of `size` pixels, by module path.

    They are in the order of the network, which is traced but not run.
    """
    model = PHASES[phase].build_network(make_config(phase, "float32", width), CLASSES)
    convolutions: dict[str, Shape] = {}

    def record(
        call: Callable, arguments: tuple, named: dict, context: nn.module.InterceptorContext
    ):
        module = context.module
        if isinstance(module, Conv):
            _, height, wide, channels = arguments[0].shape
            convolutions["/".join(module.path)] = Shape(
                height,
                wide,
                channels,
                module.features,
                module.kernel_size,
                module.stride,
                module.dilation,
            )
        return call(*arguments, **named)

    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    return convolutions


def count_products(shape: Shape, *, padded: bool) -> int:
    """Counts the multiplications of a convolution per image, `padded`: those with padding too."""

    def count_on_axis(length: int) -> int:
        out = -(-length // shape.stride)
        if padded:
            return out * shape.size
        reach = shape.size // 2
        index = shape.stride * np.arange(out)[:, None]
        index = index + shape.dilation * np.arange(-reach, reach + 1)[None, :]
        return int(((index >= 0) & (index < length)).sum())

    return (
        count_on_axis(shape.height) * count_on_axis(shape.width) * shape.channels * shape.features
    )


def choose_way(shape: Shape, direction: Direction) -> str:
    """Returns the way that training takes on a CPU."""
    image = (1, shape.height, shape.width, shape.channels)
    kernel = (shape.size, shape.size, shape.channels, shape.features)
    return cpu_convolution.choose_way(direction, image, kernel, shape.stride, shape.dilation)


def compile_ways(
    shape: Shape, batch: int, direction: Direction, *, torch: bool
) -> dict[str, Callable[[], Any]]:
    """Compiles a function for each way that suits the shape; it waits for its result."""
    rng = np.random.default_rng(0)
    out = (batch, -(-shape.height // shape.stride), -(-shape.width // shape.stride), shape.features)
    x = rng.standard_normal((batch, shape.height, shape.width, shape.channels), np.float32)
    kernel_shape = (shape.size, shape.size, shape.channels, shape.features)
    kernel = rng.standard_normal(kernel_shape, np.float32)
    gradient = rng.standard_normal(out, np.float32)
    options = {"stride": shape.stride, "dilation": shape.dilation}
    functions = {"XLA": convolution.XLA[direction], **cpu_convolution.PRODUCTS[direction]}
    if shape.size == 1:
        functions.pop("inside")  # no kernel lies on padding
    elif direction == "forward":
        functions.pop("product")  # of 1x1 convolutions

    def compile_way(function: Callable) -> Callable[[], Any]:
        arrays = (x, kernel) if direction == "forward" else (x, kernel, gradient)
        arrays = tuple(map(jax.device_put, arrays))
        program = jax.jit(partial(function, **options)).lower(*arrays).compile()
        return lambda: jax.block_until_ready(program(*arrays))

    ways: dict[str, Callable[[], Any]] = {
        name: compile_way(function) for name, function in functions.items()
    }
    if torch:
        ways["PyTorch"] = _make_torch_way(x, kernel, gradient, direction, options)
    return ways


def _make_torch_way(
    x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, direction: Direction, options: dict
) -> Callable[[], Any]:
    import torch
    from torch.nn import functional, grad

    images, upstream = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() for array in (x, gradient)
    )
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
    options = {**options, "padding": options["dilation"] * (len(kernel) // 2)}
    if direction == "forward":
        return lambda: functional.conv2d(images, weight, **options)
    if direction == "input gradient":
        return lambda: grad.conv2d_input(images.shape, weight, upstream, **options)
    return lambda: grad.conv2d_weight(images, weight.shape, upstream, **options)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for every distinct shape and direction: milliseconds of each way."""
    rows = []
    for phase in args.phase:
        counted = Counter(list_shapes(phase, args.size, args.width).values())
        for shape, count in counted.items():
            for direction in DIRECTIONS:
                if direction == "input gradient" and shape.channels == 3:
                    continue  # the image needs no gradient
                functions = compile_ways(shape, args.batch, direction, torch=args.torch)
                seconds = measure.time_in_turn(functions, args.repeats)
                rows.append(
                    {
                        "phase": phase,
                        "convolution": str(shape),
                        "times": count,
                        "what": direction,
                        "GFLOP": 2e-9 * args.batch * count_products(shape, padded=True),
                        **{name: 1e3 * seconds[name] if name in seconds else None for name in WAYS},
                        "used": choose_way(shape, direction),
                    }
                )
    return rows


def sum_by_network(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums milliseconds over each network by direction, from the rows of `run`."""
    ours = [name for name in WAYS if name != "PyTorch"]
    sums: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows:
        times = {
            "XLA": row["XLA"],
            "used": row[row["used"]],
            "fastest of ours": min(row[name] for name in ours if row[name] is not None),
            "PyTorch": row["PyTorch"],
        }
        total = sums.setdefault(
            (row["phase"], row["what"]), {"phase": row["phase"], "what": row["what"]}
        )
        for name, time in times.items():
            total[name] = None if time is None else total.get(name, 0.0) + row["times"] * time
    return list(sums.values())


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    parser = measure.make_parser(__doc__)
    parser.add_argument("--phase", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    args = parser.parse_args()
    args.torch = measure.use_torch(args.torch)
    rows = run(args)
    measure.report("convolutions", vars(args), rows)
    print("\n" + measure.format_table(sum_by_network(rows)))


if __name__ == "__main__":
    main()
