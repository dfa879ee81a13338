"""The convolutions of both networks one by one: XLA's own gradients, ours, PyTorch's.

python -m benchmarks.convolutions --batch 2

Every distinct shape is taken from the networks as they run. The ways, in turn, in float32 on the
CPU:

    XLA       what XLA makes of the convolution or of its gradient
    product   the matrix products of `wsss_jax.models.convolution`, whatever the shape
    copied    the same with a transposed copy of the input (gradient for the kernel)
    inside    a product for each position in the kernel, over the pixels that it meets
    PyTorch   NCHW, eager

"used" names the one that training takes for the shape. The thresholds in `convolution` should be
such that it is the fastest of ours; the sums over a whole network at the end say how far it is.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from flax import linen as nn

from benchmarks import measure
from benchmarks.train import CLASSES, PHASES, settings
from wsss_jax.models import convolution
from wsss_jax.models.layers import Conv

FORWARD, INPUT, KERNEL = "forward", "input gradient", "kernel gradient"
WAYS = ("XLA", "product", "copied", "inside", "PyTorch")
_ALWAYS, _NEVER = 0, 1 << 30


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


def shapes(phase: int, size: int, width: float) -> dict[str, Shape]:
    """The convolutions of a phase's network on images of `size` pixels, by module path, in order.

    The network is only traced, not run.
    """
    model = PHASES[phase].build_network(settings(phase, "float32", width), CLASSES)
    found: dict[str, Shape] = {}

    def record(
        call: Callable, arguments: tuple, named: dict, context: nn.module.InterceptorContext
    ):
        module = context.module
        if isinstance(module, Conv):
            _, height, wide, channels = arguments[0].shape
            found["/".join(module.path)] = Shape(
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
    return found


def products(shape: Shape, *, padded: bool) -> int:
    """Multiplications of one image's convolution; `padded` counts those with padding too."""

    def along(length: int) -> int:
        out = -(-length // shape.stride)
        if padded:
            return out * shape.size
        reach = shape.size // 2
        at = shape.stride * np.arange(out)[:, None]
        at = at + shape.dilation * np.arange(-reach, reach + 1)[None, :]
        return int(((at >= 0) & (at < length)).sum())

    return along(shape.height) * along(shape.width) * shape.channels * shape.features


def used(shape: Shape, direction: str) -> str:
    """The way that training on the CPU takes."""
    image = (1, shape.height, shape.width, shape.channels)
    kernel = (shape.size, shape.size, shape.channels, shape.features)
    if convolution._is_wide(image, kernel, shape.stride, shape.dilation):
        return "inside"
    if direction == FORWARD:
        return "product" if shape.size == 1 else "XLA"
    if direction == INPUT:
        enough = shape.channels >= convolution._CHANNELS_FOR_INPUT_PRODUCT
        return "product" if enough or shape.size == 1 else "XLA"
    if shape.channels < convolution._CHANNELS_FOR_KERNEL_PRODUCT:
        return "XLA"
    return "copied" if shape.features >= convolution._FEATURES_FOR_COPY else "product"


def ways(shape: Shape, batch: int, direction: str, *, torch: bool) -> dict[str, Callable[[], Any]]:
    """Functions that each compute `direction` and wait for it; those that make sense for it."""
    rng = np.random.default_rng(0)
    out = (batch, -(-shape.height // shape.stride), -(-shape.width // shape.stride), shape.features)
    x = rng.standard_normal((batch, shape.height, shape.width, shape.channels), np.float32)
    kernel_shape = (shape.size, shape.size, shape.channels, shape.features)
    kernel = rng.standard_normal(kernel_shape, np.float32)
    gradient = rng.standard_normal(out, np.float32)
    options = {"stride": shape.stride, "dilation": shape.dilation}
    found = {}
    inside = {
        "_SHARE_INSIDE": 1.0,
        "_CHANNELS_FOR_INPUT_PRODUCT": _ALWAYS,
        "_CHANNELS_FOR_KERNEL_PRODUCT": _ALWAYS,
    }

    def compiled(function: Callable, *arguments: np.ndarray, **thresholds: float) -> Callable:
        arguments = tuple(map(jax.device_put, arguments))
        with mock.patch.dict(vars(convolution), {"_SHARE_INSIDE": 0.0, **thresholds}):
            program = jax.jit(partial(function, **options)).lower(*arguments).compile()
        return lambda: jax.block_until_ready(program(*arguments))

    if direction == FORWARD:
        found["XLA"] = compiled(convolution._convolve, x, kernel)
        if shape.size == 1:
            found["product"] = compiled(convolution._product, x, kernel)
        else:
            found["inside"] = compiled(convolution._product, x, kernel)
    elif direction == INPUT:
        found["XLA"] = compiled(convolution._input_gradient, x, kernel, gradient)
        found["product"] = compiled(
            convolution._input_product, x, kernel, gradient, _CHANNELS_FOR_INPUT_PRODUCT=_ALWAYS
        )
        if shape.size > 1:
            found["inside"] = compiled(convolution._input_product, x, kernel, gradient, **inside)
    else:
        found["XLA"] = compiled(convolution._kernel_gradient, x, kernel, gradient)
        for name, features in (("product", _NEVER), ("copied", _ALWAYS)):
            found[name] = compiled(
                convolution._kernel_product,
                x,
                kernel,
                gradient,
                _CHANNELS_FOR_KERNEL_PRODUCT=_ALWAYS,
                _FEATURES_FOR_COPY=features,
            )
        if shape.size > 1:
            found["inside"] = compiled(convolution._kernel_product, x, kernel, gradient, **inside)
    if torch:
        found["PyTorch"] = _torch_way(x, kernel, gradient, direction, options)
    return found


def _torch_way(
    x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, direction: str, options: dict
) -> Callable[[], Any]:
    import torch
    from torch.nn import functional, grad

    images, upstream = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() for array in (x, gradient)
    )
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
    options = {**options, "padding": options["dilation"] * (len(kernel) // 2)}
    if direction == FORWARD:
        return lambda: functional.conv2d(images, weight, **options)
    if direction == INPUT:
        return lambda: grad.conv2d_input(images.shape, weight, upstream, **options)
    return lambda: grad.conv2d_weight(images, weight.shape, upstream, **options)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every distinct shape and direction: milliseconds of each way."""
    rows = []
    for phase in args.phase:
        counted = Counter(shapes(phase, args.size, args.width).values())
        for shape, count in counted.items():
            for direction in (FORWARD, INPUT, KERNEL):
                if direction == INPUT and shape.channels == 3:
                    continue  # nobody differentiates for the image
                functions = ways(shape, args.batch, direction, torch=args.torch)
                found = measure.in_turn(functions, args.repeats)
                rows.append(
                    {
                        "phase": phase,
                        "convolution": str(shape),
                        "times": count,
                        "what": direction,
                        "GFLOP": 2e-9 * args.batch * products(shape, padded=True),
                        **{name: 1e3 * found[name] if name in found else None for name in WAYS},
                        "used": used(shape, direction),
                    }
                )
    return rows


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of all convolutions of a network by direction, from the rows of `run`."""
    ours = [name for name in WAYS if name != "PyTorch"]
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows:
        times = {
            "XLA": row["XLA"],
            "used": row[row["used"]],
            "fastest of ours": min(row[name] for name in ours if row[name] is not None),
            "PyTorch": row["PyTorch"],
        }
        total = found.setdefault(
            (row["phase"], row["what"]), {"phase": row["phase"], "what": row["what"]}
        )
        for name, taken in times.items():
            total[name] = None if taken is None else total.get(name, 0.0) + row["times"] * taken
    return list(found.values())


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--phase", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="pixels, height and width")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    args = parser.parse_args()
    args.torch = measure.torch_wanted(args.torch)
    rows = run(args)
    measure.report("convolutions", vars(args), rows)
    print("\n" + measure.table(totals(rows)))


if __name__ == "__main__":
    main()
