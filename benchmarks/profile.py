"""Shows where the time of a training step or a Grad-CAM batch goes, by a trace of the profiler.

python -m benchmarks.profile --phase 1
python -m benchmarks.profile --what masks

Prints the operations that XLA runs in two tables, by kind of work and by shape of the layer.
Operations can run in several threads at once, so their sum can exceed the time of the call; shares
are of the sum.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from benchmarks import convolutions, measure, programs

# `  %name = shape opcode(operands), ..., metadata={op_name="..."}`; the shape may be a tuple
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (?:\([^)]*\)|\S+) ([\w-]+)\(")
_ORIGIN = re.compile(r'op_name="([^"]*)"')
_CONTAINERS = ("call", "while", "conditional")  # the trace lists what they run, too
_NETWORKS = ("ResNet38", "DeepLabV3Plus")
# Of convolutions with kernels of one place and of more, and of Winograd's tiles.
_INPUT_GRADIENTS = ("bhwf,kf->bhwk", "bhwf,df->bhwd", "ptf,pdf->ptd")


def trace(call: Callable[[], Any], module: str) -> Counter[str]:
    """Measures nanoseconds of each operation of a call, for the compiled module of that name."""
    times: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    if stats.get("hlo_module") == module and "hlo_op" in stats:
                        times[stats["hlo_op"]] += event.duration_ns
    return times


def parse_origins(hlo: str) -> dict[str, tuple[str, str]]:
    """Returns instruction -> opcode and origin in the source, for a compiled program."""
    instructions = {}
    for line in hlo.splitlines():
        instruction, origin = _INSTRUCTION.match(line), _ORIGIN.search(line)
        if instruction:
            name, opcode = instruction.groups()
            instructions[name] = opcode, origin[1] if origin else ""
    return instructions


def classify(origin: str, in_convolution: bool) -> str:
    """Classifies an operation by its origin, such as `.../transpose(jvp(ResNet38))/b3/...`."""
    backward = "transpose(jvp" in origin or "transpose(vmap" in origin
    if in_convolution:
        if origin.endswith("conv_general_dilated"):
            return "convolutions of gradients" if backward else "convolutions, forward"
        if origin.endswith("dot_general"):
            if not backward:
                return "products, forward"
            for_input = any(product in origin for product in _INPUT_GRADIENTS)
            return "products for the " + ("input" if for_input else "kernel")
        if not backward:
            return "around convolutions, forward"
        return "copies and sums around the products"
    if any(network in origin for network in _NETWORKS):
        return "normalization, ReLU, dropout, " + ("backward" if backward else "forward")
    return "optimizer, augmentation, loss, maps" if origin else "copies that XLA adds"


def make_tables(
    times: Counter[str], hlo: str, shapes: dict[str, convolutions.Shape]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Makes tables of milliseconds and shares: all by kind, convolutions by shape and kind."""
    instructions = parse_origins(hlo)
    # Longer paths first: "b4_5/conv..." and not "b4/conv...".
    paths = sorted(shapes, key=len, reverse=True)
    by_kind: Counter[str] = Counter()
    by_shape: Counter[tuple[str, str]] = Counter()
    for name, nanoseconds in times.items():
        opcode, origin = instructions.get(name, ("", ""))
        if opcode in _CONTAINERS:
            continue
        layer = next((path for path in paths if f"/{path}/" in origin), None)
        what = classify(origin, layer is not None)
        by_kind[what] += nanoseconds
        if layer is not None:
            by_shape[str(shapes[layer]), what] += nanoseconds
    total = by_kind.total()

    def make_rows(times: Counter, names: Callable[[Any], dict[str, str]]) -> list[dict[str, Any]]:
        return [
            {**names(key), "ms": time / 1e6, "share": time / total}
            for key, time in times.most_common()
        ]

    return (
        make_rows(by_kind, lambda key: {"kind": key}),
        make_rows(by_shape, lambda key: {"convolution": key[0], "kind": key[1]}),
    )


def run(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the tables of one call, after one that is not traced."""
    common = args.precision, args.width, args.batch, args.size
    if args.what == "step":
        program = programs.make_train_step(args.phase, *common)
        function = programs.map_on_mesh(program.function, 1)
    else:
        program = programs.make_grad_cam(*common)
        function = program.function
    compiled = jax.jit(function).lower(*program.arguments).compile()
    arguments = jax.tree.map(_make_zeros, program.arguments)

    def call() -> None:
        jax.block_until_ready(compiled(*arguments))

    call()
    hlo = compiled.as_text() or ""
    (module,) = re.findall(r"^HloModule ([^\s,]+)", hlo)
    phase = args.phase if args.what == "step" else 1
    return make_tables(
        trace(call, module), hlo, convolutions.list_shapes(phase, args.size, args.width)
    )


def _make_zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Makes zeros, since no operation takes longer for other values, or a random key."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(shape.shape, shape.dtype)


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    parser = measure.make_parser(__doc__)
    parser.add_argument("--what", choices=("step", "masks"), default="step")
    parser.add_argument("--phase", type=int, choices=(1, 2), default=1, help="of the step")
    parser.add_argument("--batch", type=int, default=2 if on_cpu else 20)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=12, help="of the table by layer shape")
    args = parser.parse_args()
    kinds, shapes = run(args)
    measure.report("profile", vars(args), kinds)
    print("\n" + measure.format_table(shapes[: args.rows]))


if __name__ == "__main__":
    main()
