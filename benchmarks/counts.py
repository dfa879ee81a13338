"""Counts operations and bytes of a training step, a Grad-CAM batch and a slide tile, per image.

python -m benchmarks.counts

The operations are XLA's count of the program for a GPU before optimization, beside the sum over the
convolutions by hand, with and without the products with padding, which XLA leaves out. The bytes
are XLA's count of the program compiled for this device; only fused results stay out of memory. A
second table sums the forward passes by stage.
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import convolutions, measure, programs
from benchmarks.train import CLASSES, PHASES, make_config
from configs import base

_FLOPS_PER_PRODUCT = 2


def count_stages(phase: int, size: int, width: float) -> list[dict[str, Any]]:
    """Counts GFLOP of the forward convolutions of one image by stage, with and without padding."""
    rows: dict[str, dict[str, Any]] = {}
    for path, shape in convolutions.list_shapes(phase, size, width).items():
        stage = find_stage(path)
        row = rows.setdefault(
            stage, {"phase": phase, "stage": stage, "convolutions": 0, "GFLOP": 0.0, "inside": 0.0}
        )
        row["convolutions"] += 1
        row["GFLOP"] += _to_gflop(convolutions.count_products(shape, padded=True))
        row["inside"] += _to_gflop(convolutions.count_products(shape, padded=False))
    return list(rows.values())


def find_stage(path: str) -> str:
    """Maps "b4_3/conv_branch2a" to "b4", "backbone/layer3_7/conv2" to "backbone/layer3"."""
    parts = path.split("/")[:-1] or [path]
    return "/".join(re.sub(r"_\d+$", "", part) for part in parts[:2])


def count_by_hand(what: str, size: int, width: float, *, padded: bool) -> float:
    """Counts GFLOP of the convolutions of a program on one image.

    A trained convolution costs three times its forward pass; with frozen weights, or without a
    gradient for its input, twice. Grad-CAM has a backward pass for every class, through all that
    follows the lowest layer.
    """

    def sum_layers(phase: int, factor: Callable[[str], int]) -> float:
        shapes = convolutions.list_shapes(phase, size, width)
        return sum(
            factor(path) * _to_gflop(convolutions.count_products(shape, padded=padded))
            for path, shape in shapes.items()
        )

    if what == "slide tile":
        return sum_layers(1, lambda path: 1) + sum_layers(2, lambda path: 1)
    if what == "phase 2 step":
        return sum_layers(2, lambda path: 2 if path == "backbone/conv1" else 3)
    if what == "Grad-CAM":
        paths = list(convolutions.list_shapes(1, size, width))
        lowest_layer = base.layers("paper")[0]
        lowest = max(i for i, path in enumerate(paths) if path.startswith(f"{lowest_layer}/"))
        return sum_layers(1, lambda path: 1 + CLASSES * (paths.index(path) > lowest))
    frozen = make_config(1, "float32", width).model.frozen_blocks
    layers = [path.split("/")[0] for path in convolutions.list_shapes(1, size, width)]
    first = next(layer for layer in layers if layer not in frozen)
    no_input = {f"{first}/conv_branch1", f"{first}/conv_branch2a"}

    def factor(path: str) -> int:
        if path.split("/")[0] in frozen:
            return 1
        return 2 if path in no_input else 3

    return sum_layers(1, factor)


def _to_gflop(products: int) -> float:
    return 1e-9 * _FLOPS_PER_PRODUCT * products


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for every program, per image."""
    batch, size = args.batch, args.size
    common = args.precision, args.width, batch, size
    all_programs = {
        "phase 1 step": programs.make_train_step(1, *common),
        "Grad-CAM": programs.make_grad_cam(*common),
        "phase 2 step": programs.make_train_step(2, *common),
        "slide tile": programs.make_slide_tile(*common),
    }
    return [
        {"what": name, **count_program(name, program, args)}
        for name, program in all_programs.items()
    ]


def count_program(
    name: str, program: programs.Program, args: argparse.Namespace
) -> dict[str, float]:
    """Counts operations and bytes of a program, per image of its batch."""
    function = programs.map_on_mesh(program.function, 1) if "step" in name else program.function
    traced = jax.jit(function).trace(*program.arguments)
    flops = traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"] / args.batch
    moved = traced.lower().compile().cost_analysis()["bytes accessed"] / args.batch
    return {
        "GFLOP (XLA)": flops / 1e9,
        "by hand": count_by_hand(name, args.size, args.width, padded=False),
        "with padding": count_by_hand(name, args.size, args.width, padded=True),
        "GB": moved / 1e9,
        "FLOP/byte": flops / moved,
    }


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    measure.report("counts", vars(args), run(args))
    for phase in PHASES:
        print("\n" + measure.format_table(count_stages(phase, args.size, args.width)))
    products, memory = measure.measure_product_rate(args.precision), measure.measure_memory_rate()
    print(
        f"\nthis device: {products / 1e12:.3g} TFLOP/s in a matrix product, "
        f"{memory / 1e9:.3g} GB/s in a copy; they meet at {products / memory:.3g} FLOP/byte"
    )


if __name__ == "__main__":
    main()
