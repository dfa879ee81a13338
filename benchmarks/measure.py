"""What all benchmarks share: the clock, the machine, and where the figures go."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from wsss_jax.files import atomic_path

RESULTS = Path("runs/benchmarks")  # <benchmark>.jsonl, a line for every run
_PACKAGES = ("jax", "jaxlib", "flax", "torch", "numpy")


def in_turn(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """`seconds` of several functions, called in turn so that other work meets all of them."""
    for function in functions.values():
        function()
    times = [{name: once(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: min(found[name] for found in times) for name in functions}


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Wall-clock seconds of the fastest of `repeats` calls, after one that is not counted.

    The fastest, because other work on the machine only ever adds. `function` must wait for its
    result: see `jax.block_until_ready`.
    """
    function()
    return min(once(function) for _ in range(repeats))


def once(function: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def product_rate(dtype: str, repeats: int = 5) -> float:
    """Floating-point operations per second of a large matrix product on the first device.

    "float32" is computed in float32; "tensorfloat32" takes float32 operands as the device likes.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    precision = "highest" if dtype == "float32" else "default"
    kind = jnp.bfloat16 if dtype == "bfloat16" else jnp.float32
    a = jax.random.normal(jax.random.key(0), (size, size), kind)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=precision))
    return 2 * size**3 / seconds(lambda: product(a).block_until_ready(), repeats)


def flops(mapped: Callable, *arguments: Any) -> float:
    """Floating-point operations of a `jax.pmap`ped function, over all devices, as XLA counts."""
    return mapped.lower(*arguments).cost_analysis()["flops"] * jax.device_count()


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def machine() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    """The processor's name; Linux keeps it out of `platform`."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report(benchmark: str, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table and appends them, with machine and settings, to `RESULTS`."""
    print()
    print(table(rows))
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    line = {
        "benchmark": benchmark,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "commit": commit,
        "machine": machine(),
        "settings": settings,
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{benchmark}.jsonl"
    before = path.read_text() if path.is_file() else ""
    with atomic_path(path) as temporary:
        temporary.write_text(before + json.dumps(line) + "\n")
    print(f"\nappended to {path}: {json.dumps(line['machine'])}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as a table in Markdown."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
