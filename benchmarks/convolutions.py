"""Measures the convolutions of both networks one by one: XLA's own, ours and PyTorch's.

python -m benchmarks.convolutions --batch 2
python -m benchmarks.convolutions --tune

The distinct shapes come from the networks as they run. They are measured in turn, in float32 on
the CPU:

    XLA             what XLA makes of the convolution or of its gradient
    product         the matrix products of `wsss_jax.models.cpu_convolution`, whatever the shape
    copied          the same with a transposed copy of the input (kernel gradient)
    inside          a product for each position in the kernel, over the pixels that it meets
    space to batch  of a dilated convolution: XLA's without dilation, on every n-th row and column
    Winograd nxn    fewer products for tiles of n x n pixels, see `wsss_jax.models.winograd`
    PyTorch         NCHW, eager

"used" names the way that training takes for the shape. It should be the fastest of ours, which
the thresholds in `cpu_convolution` decide; the sums over a network at the end show the difference.

With `--tune` the ways are measured on the device at hand, in the precision and with the images per
device that training has there (`--precision`, `--batch`), and the fastest are entered into
`runs/convolutions.json`, or the file that `--table` names. Trainings follow it.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import measure
from benchmarks.train import CLASSES, PHASES, make_config
from configs import base
from wsss_jax import convolution_table, parallel
from wsss_jax.config_rules import PRECISIONS
from wsss_jax.models import convolution
from wsss_jax.models.layers import Conv
from wsss_jax.models.lowering import DIRECTIONS, Choice, Direction, Lowering, Shape, Way, list_ways

WAYS = (*get_args(Way), "PyTorch")
# A way must take at most this share of the time of the one by rule to be chosen instead: nearer
# ones differ by chance.
_FASTER = 0.97


class Setting(NamedTuple):
    """What convolutions are measured with: images, the precision of a run, and PyTorch beside."""

    batch: int
    precision: str = "float32"
    torch: bool = False


def list_shapes(phase: int, size: int, width: float) -> dict[str, Shape]:
    """Lists the convolutions of a phase's network on images of `size` pixels, by module path."""
    config = make_config(phase, "float32", width)
    return record_shapes(PHASES[phase].build_network(config, CLASSES), size)


def record_shapes(model: nn.Module, size: int) -> dict[str, Shape]:
    """Lists the convolutions of a network in its order; it is traced but not run."""
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


def choose_way(shape: Shape, direction: Direction) -> Way:
    """Returns the way that training takes here without a table."""
    return convolution.choose_way(parallel.name_platform(), direction, shape)


def compile_ways(
    shape: Shape, direction: Direction, setting: Setting
) -> dict[str, Callable[[], Any]]:
    """Compiles a function for each way that suits the shape; it waits for its result."""
    rng = np.random.default_rng(0)
    size, batch = shape.size, setting.batch
    out = (batch, -(-shape.height // shape.stride), -(-shape.width // shape.stride), shape.features)
    x = rng.standard_normal((batch, shape.height, shape.width, shape.channels), np.float32)
    kernel = rng.standard_normal((size, size, shape.channels, shape.features), np.float32)
    gradient = rng.standard_normal(out, np.float32)
    platform = parallel.name_platform()
    dtype = jnp.dtype("bfloat16" if setting.precision == "bfloat16" else "float32")
    lowering = Lowering(tensorfloat32=setting.precision == "tensorfloat32")

    def compile_way(way: Way) -> Callable[[], Any]:
        needed = (x, kernel) if direction == "forward" else (x, kernel, gradient)
        arrays = tuple(jnp.asarray(array, dtype) for array in needed)
        plan = convolution.make_plan(platform, direction, shape, dtype, lowering, way)
        function = partial(convolution.compute, plan, direction, shape.stride)
        program = jax.jit(function).lower(*arrays).compile()
        return lambda: jax.block_until_ready(program(*arrays))

    ways: dict[str, Callable[[], Any]] = {
        way: compile_way(way) for way in list_ways(platform, direction, shape)
    }
    if setting.torch:
        options = {"stride": shape.stride, "dilation": shape.dilation}
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
                setting = Setting(args.batch, torch=args.torch)
                functions = compile_ways(shape, direction, setting)
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


def tune(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Enters the fastest ways into the table; returns a row for every shape and direction."""
    platform, rows = parallel.name_platform(), []
    counted: Counter[Shape] = Counter()
    for phase in args.phase:
        counted.update(shape.crop() for shape in list_shapes(phase, args.size, args.width).values())
    for precision in args.precision:
        for shape, count in counted.items():
            ways = []
            for direction in DIRECTIONS:
                by_rule = choose_way(shape, direction)
                if direction == "input gradient" and shape.channels == 3:
                    ways.append(by_rule)  # the image needs no gradient
                    continue
                functions = compile_ways(shape, direction, Setting(args.batch, precision))
                seconds = measure.time_in_turn(functions, args.repeats)
                ways.append(choose_fastest(seconds, by_rule))
                rows.append(
                    {
                        "precision": precision,
                        "convolution": str(shape),
                        "times": count,
                        "what": direction,
                        **{
                            way: 1e3 * seconds[way] if way in seconds else None for way in WAYS[:-1]
                        },
                        "by rule": by_rule,
                        "chosen": ways[-1],
                    }
                )
            # At once: measuring takes minutes, and may be interrupted.
            choice = Choice(platform, shape, tuple(ways))
            convolution_table.write(args.table, precision, args.batch, [choice])
    return rows


def choose_fastest(seconds: dict[str, float], by_rule: Way) -> Way:
    """Returns the fastest way, unless the one by rule is about as fast."""
    fastest = min(seconds, key=lambda way: seconds[way])
    return fastest if seconds[fastest] < _FASTER * seconds[by_rule] else by_rule  # type: ignore[return-value]


def sum_tuned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums milliseconds over the networks by precision and direction, from the rows of `tune`."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["precision"], row["what"]
        total = sums.setdefault(
            key, {"precision": key[0], "what": key[1], "XLA": 0.0, "by rule": 0.0, "chosen": 0.0}
        )
        for name, way in (("XLA", "XLA"), ("by rule", row["by rule"]), ("chosen", row["chosen"])):
            total[name] += row["times"] * row[way]
    return list(sums.values())


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--phase", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--batch", type=int, help="images; 2, with --tune on accelerators 20")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    parser.add_argument("--tune", action="store_true", help="enter the fastest into a table")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="with --tune")
    default = base.training().convolutions.table
    parser.add_argument("--table", type=Path, default=Path(default), help="with --tune")
    args = parser.parse_args()
    if args.tune:
        on_cpu = parallel.name_platform() == "cpu"
        args.batch = args.batch or (2 if on_cpu else 20)
        args.precision = args.precision or PRECISIONS[: 1 if on_cpu else 3]
        rows = tune(args)
        measure.report("tuning", {**vars(args), "table": str(args.table)}, rows)
        print("\n" + measure.format_table(sum_tuned(rows)))
        print(f"\nwrote {args.table}")
        return
    jax.config.update("jax_platforms", "cpu")
    args.batch = args.batch or 2
    args.torch = measure.use_torch(args.torch)
    rows = run(args)
    settings = {name: value for name, value in vars(args).items() if name != "table"}
    measure.report("convolutions", settings, rows)
    print("\n" + measure.format_table(sum_by_network(rows)))


if __name__ == "__main__":
    main()
