"""Where the time of a training step or of a Grad-CAM batch goes, from a trace of the profiler.

python -m benchmarks.profile --phase 1
python -m benchmarks.profile --what masks

One table by kind of work, one by layer shape, for the operations that XLA runs. Operations of
several threads can run at the same time: shares are of their sum, and the sum can exceed the time
of the call.
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
_CONTAINERS = ("call", "while", "conditional")  # what they run is in the trace by itself
_NETWORKS = ("ResNet38", "DeepLabV3Plus")


def traced(call: Callable[[], Any], module: str) -> Counter[str]:
    """Nanoseconds of the operations of one call by name, for the compiled module of that name."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    if stats.get("hlo_module") == module and "hlo_op" in stats:
                        found[stats["hlo_op"]] += event.duration_ns
    return found


def origins(hlo: str) -> dict[str, tuple[str, str]]:
    """Opcode and origin in the source program of every instruction of a compiled program."""
    found = {}
    for line in hlo.splitlines():
        instruction, origin = _INSTRUCTION.match(line), _ORIGIN.search(line)
        if instruction:
            name, opcode = instruction.groups()
            found[name] = opcode, origin[1] if origin else ""
    return found


def kind(origin: str, in_convolution: bool) -> str:
    """What an operation is for, from its origin, such as `.../transpose(jvp(ResNet38))/b3/...`."""
    backward = "transpose(jvp" in origin or "transpose(vmap" in origin
    if in_convolution:
        if origin.endswith("conv_general_dilated"):
            return "convolutions of gradients" if backward else "convolutions, forward"
        if origin.endswith("dot_general"):
            if not backward:
                return "products, forward"
            for_input = "bhwf,kf->bhwk" in origin or "bhwf,df->bhwd" in origin
            return "products for the " + ("input" if for_input else "kernel")
        if not backward:
            return "around convolutions, forward"
        return "copies and sums around the products"
    if any(network in origin for network in _NETWORKS):
        return "normalization, ReLU, dropout, " + ("backward" if backward else "forward")
    return "optimizer, augmentation, loss, maps" if origin else "copies that XLA adds"


def tables(
    times: Counter[str], hlo: str, shapes: dict[str, convolutions.Shape]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Milliseconds and shares by kind and, for what belongs to a convolution, by shape and kind."""
    instructions = origins(hlo)
    # Longer paths first: "b4_5/conv..." and not "b4/conv...".
    paths = sorted(shapes, key=len, reverse=True)
    by_kind: Counter[str] = Counter()
    by_shape: Counter[tuple[str, str]] = Counter()
    for name, nanoseconds in times.items():
        opcode, origin = instructions.get(name, ("", ""))
        if opcode in _CONTAINERS:
            continue
        layer = next((path for path in paths if f"/{path}/" in origin), None)
        what = kind(origin, layer is not None)
        by_kind[what] += nanoseconds
        if layer is not None:
            by_shape[str(shapes[layer]), what] += nanoseconds
    whole = by_kind.total()

    def rows(found: Counter, names: Callable[[Any], dict[str, str]]) -> list[dict[str, Any]]:
        return [
            {**names(key), "ms": time / 1e6, "share": time / whole}
            for key, time in found.most_common()
        ]

    return (
        rows(by_kind, lambda key: {"kind": key}),
        rows(by_shape, lambda key: {"convolution": key[0], "kind": key[1]}),
    )


def run(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tables of one call, after one that is not traced."""
    common = args.precision, args.width, args.batch, args.size
    if args.what == "step":
        program = programs.train_step(args.phase, *common)
        function = programs.on_mesh(program.function, 1)
    else:
        program = programs.grad_cam(*common)
        function = program.function
    compiled = jax.jit(function).lower(*program.arguments).compile()
    arguments = jax.tree.map(_zeros, program.arguments)

    def call() -> None:
        jax.block_until_ready(compiled(*arguments))

    call()
    hlo = compiled.as_text()
    module = re.match(r"HloModule ([^\s,]+)", hlo)[1]
    phase = args.phase if args.what == "step" else 1
    return tables(traced(call, module), hlo, convolutions.shapes(phase, args.size, args.width))


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros, since no operation takes longer for other values; a key where one is wanted."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(shape.shape, shape.dtype)


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--what", choices=("step", "masks"), default="step")
    parser.add_argument("--phase", type=int, choices=(1, 2), default=1, help="of the step")
    parser.add_argument("--batch", type=int, default=2 if on_cpu else 20)
    parser.add_argument("--size", type=int, default=224, help="pixels, height and width")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=12, help="of the table by layer shape")
    args = parser.parse_args()
    kinds, shapes = run(args)
    measure.report("profile", vars(args), kinds)
    print("\n" + measure.table(shapes[: args.rows]))


if __name__ == "__main__":
    main()
