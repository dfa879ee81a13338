"""What all benchmarks share: timing, the machine, and the file of results."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from wsss_jax import parallel
from wsss_jax.files import atomic_path

RESULTS = Path("runs/benchmarks")  # <benchmark>.jsonl with a line for every run
_PACKAGES = ("jax", "jaxlib", "flax", "torch", "numpy")


def time_in_turn(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Runs `time_fastest` for several functions in turn, so that other load affects all alike."""
    for function in functions.values():
        function()
    times = [
        {name: time_once(function) for name, function in functions.items()} for _ in range(repeats)
    ]
    return {name: min(by_name[name] for by_name in times) for name in functions}


def time_fastest(function: Callable[[], Any], repeats: int) -> float:
    """Returns the seconds of the fastest of `repeats` calls, after one that is not counted.

    The fastest, since other load on the machine only adds time. `function` must wait for its
    result, see `jax.block_until_ready`.
    """
    function()
    return min(time_once(function) for _ in range(repeats))


def time_once(function: Callable[[], Any]) -> float:
    """Returns the wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_product_rate(dtype: str, repeats: int = 5) -> float:
    """Measures operations per second of a large matrix product on the first device.

    "float32" is computed in float32; "tensorfloat32" has float32 operands, in the default precision
    of the device.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    precision = "highest" if dtype == "float32" else "default"
    kind = jnp.bfloat16 if dtype == "bfloat16" else jnp.float32
    a = jax.random.normal(jax.random.key(0), (size, size), kind)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=precision))
    return 2 * size**3 / time_fastest(lambda: product(a).block_until_ready(), repeats)


def count_flops(mapped: jax.stages.Wrapped, *arguments: Any) -> float:
    """Counts the operations of a function of `jax.pmap` over all devices, as XLA does.

    Of its program for a GPU: on CPUs some convolutions are computed with fewer operations.
    """
    lowered = jax.jit(mapped).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.cost_analysis()["flops"] * jax.device_count()


def make_parser(description: str) -> argparse.ArgumentParser:
    """Makes a parser with the options of nearly all benchmarks; shows the first line as help."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--size", type=int, default=224, help="pixels, height and width")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels")
    return parser


def use_torch(wanted: bool) -> bool:
    """Whether to measure PyTorch too; prints a note if it is wanted but not installed."""
    installed = importlib.util.find_spec("torch") is not None
    if wanted and not installed:
        print("PyTorch is not installed (make torch): it is not measured")
    return wanted and installed


def measure_memory_rate(repeats: int = 5) -> float:
    """Measures bytes per second that the first device reads and writes when it hardly computes."""
    size = 2**27 if jax.default_backend() == "cpu" else 2**31
    a = jnp.zeros(size // 4, jnp.float32)
    negative = jax.jit(jnp.negative, donate_argnums=0)  # in place: new pages of memory take time

    def step() -> None:
        nonlocal a
        a = negative(a).block_until_ready()

    return 2 * size / time_fastest(step, repeats)


def read_peak_memory(process: int | str = "self") -> int:
    """Reads the largest resident memory of a process so far, in bytes.

    `getrusage` begins with the peak of the process that started it.
    """
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def describe_machine() -> dict[str, Any]:
    """Returns the machine and the versions to which a result belongs."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": parallel.name_processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def report(benchmark: str, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table and appends them, with machine and settings, to `RESULTS`."""
    print()
    print(format_table(rows))
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    line = {
        "benchmark": benchmark,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "commit": commit,
        "machine": describe_machine(),
        "settings": settings,
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{benchmark}.jsonl"
    before = path.read_text() if path.is_file() else ""
    with atomic_path(path) as temporary:
        temporary.write_text(before + json.dumps(line) + "\n")
    print(f"\nappended to {path}: {json.dumps(line['machine'])}")


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats rows with the same keys as a table in Markdown."""
    cells = [list(rows[0]), *([_format_value(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _format_value(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
