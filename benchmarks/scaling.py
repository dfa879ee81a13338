"""Measures training on several devices: data sent between them, modeled time, and rates.

python -m benchmarks.scaling

* The bytes of all all-reduces of a training step, from the program compiled for simulated devices,
  beside what must be sent: the gradients and, for statistics of the batch, those of BatchNorm,
  forward and backward. They depend neither on the size of the patches nor on their number.
* A model of the step on larger machines; `SYSTEMS` and `LATENCY` are its assumptions.
* With several accelerators: images per second on 1, 2, 4, ... of them, with `--batch` patches on
  each (weak scaling) and in all (strong scaling).
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks import counts, measure, programs, train
from wsss_jax import parallel
from wsss_jax.training.step import make_state
from wsss_jax.training.task import Task

_REPOSITORY = Path(__file__).parents[1]
_REDUCE = re.compile(r"= (.*?) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")  # bits and shape
_BACKWARD_SHARE = 2 / 3  # of a step: each gradient of a convolution costs one forward pass
_PEAK_SHARE = 0.45  # of the peak that a step reaches


class System(NamedTuple):
    """A machine of the model: devices, bytes/s out of each, FLOP/s of each, hops of a reduction."""

    name: str
    devices: int
    bandwidth: float
    peak: float
    hops: int


# NVLink of an H200: 900 GB/s in both directions together, so 450 GB/s out; its peak is measured.
# TPU: the bfloat16 peaks are Google Cloud's (docs.cloud.google.com/tpu/docs/v4 and /v5e). A
# link carries 45 GB/s a direction (jax-ml.github.io/scaling-book/tpus, "TPU specs"). Of the axes
# of the torus one is used, though a reduction could use all: in both directions where it closes to
# a ring, from 64 chips on for v4 and from 256 on for v5e. A v4 chip has two cores and is one device
# of JAX; 32 chips are 4 x 4 x 2, 128 are 4 x 4 x 8. Hops are there and back along every axis.
SYSTEMS = (
    System("8 H200, NVLink", 8, 450e9, 790e12, hops=14),
    System("64 TPU v4 cores", 32, 45e9, 275e12, hops=14),
    System("256 TPU v4 cores", 128, 90e9, 275e12, hops=16),
    System("64 TPU v5e cores", 64, 45e9, 197e12, hops=28),
    System("256 TPU v5e cores", 256, 90e9, 197e12, hops=32),
)
LATENCY = 1e-6  # seconds per hop of a reduction too small for the bandwidth to matter


def list_all_reduces(hlo: str) -> list[int]:
    """Lists the bytes that a device sends into each all-reduce of a compiled program."""
    return [
        sum(
            int(bits) // 8 * math.prod(map(int, filter(None, shape.split(","))))
            for bits, shape in _ARRAY.findall(result)
        )
        for result in _REDUCE.findall(hlo)
    ]


def measure_volume(phase: int, width: float) -> dict[str, Any]:
    """Counts what a training step sends on the devices of this process; compiles, does not run.

    Returns:
      `devices`, `reductions` and their `MB` as compiled, and as expected the MB of the `gradients`
      and of the `statistics` (sums and squared deviations, and the gradients of both).
    """
    devices = jax.local_device_count()
    program = programs.make_train_step(phase, "float32", width, batch=devices, size=64)
    built = train.build_phase(phase, "float32", width)
    state, batch, *rest = program.arguments
    batch = {
        name: jax.ShapeDtypeStruct((devices, 1, *array.shape[1:]), array.dtype)
        for name, array in batch.items()
    }
    sent = list_all_reduces(train.map_step(built).lower(state, batch, *rest).compile().as_text())
    params = flatten_dict(state.variables["params"])
    trained = sum(v.size for path, v in params.items() if built.is_trained(path))
    model = train.make_config(phase, "float32", width).model
    of_batch = phase == 2 or model.batch_norm == "trained"
    statistics = sum(v.size for v in jax.tree.leaves(state.variables["batch_stats"])) * of_batch
    return {
        "phase": phase,
        "devices": devices,
        "reductions": len(sent),
        "MB": sum(sent) / 1e6,
        "gradients": 4e-6 * trained,
        "statistics": 4e-6 * 2 * statistics,
    }


def measure_volumes(devices: int, phases: list[int], width: float) -> list[dict[str, Any]]:
    """Runs `measure_volume` for each phase in a process with simulated devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": str(2 * devices),
    }
    script = f"from benchmarks import scaling; scaling.print_volumes({phases}, {width})"
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=_REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)


def print_volumes(phases: list[int], width: float) -> None:
    """Prints `measure_volume` of each phase as JSON."""
    print(json.dumps([measure_volume(phase, width) for phase in phases]))


def model_steps(sent: dict[str, Any], seconds: float | None, flops: float) -> list[dict[str, Any]]:
    """Models step time and efficiency on `SYSTEMS`, with and without overlapped transfers.

    A ring all-reduce sends 2 (n - 1) / n times its bytes. Sending gradients can overlap with the
    backward pass; sending statistics cannot, since the next operation waits for them.

    Args:
      sent: of `measure_volume`.
      seconds: of a step on one device; None: its operations at 45 % of the peak.
      flops: floating-point operations of a step on one device.
    """
    rows = []
    for system in SYSTEMS:
        alone = seconds or flops / (_PEAK_SHARE * system.peak)
        share = 2 * (system.devices - 1) / system.devices
        gradients = share * sent["gradients"] * 1e6 / system.bandwidth
        waits = sent["reductions"] - 1 if sent["statistics"] else 0
        statistics = share * sent["statistics"] * 1e6 / system.bandwidth
        statistics += waits * system.hops * LATENCY
        left = max(0.0, gradients - _BACKWARD_SHARE * alone)
        rows.append(
            {
                "phase": sent["phase"],
                "system": system.name,
                "step ms": 1e3 * alone,
                "gradients ms": 1e3 * gradients,
                "statistics ms": 1e3 * statistics,
                "efficiency, none hidden": alone / (alone + gradients + statistics),
                "efficiency, hidden": alone / (alone + left + statistics),
            }
        )
    return rows


def measure_rates(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures images per second on 1, 2, 4, ... of the accelerators, weak and strong."""
    devices = jax.local_devices()
    counts_of_devices = [2**i for i in range(len(devices).bit_length())]
    rows = []
    for phase in args.phase:
        built = train.build_phase(phase, "bfloat16", args.width)
        variables = jax.device_get(train.init_variables(built.network))
        for scaling in ("weak", "strong"):
            alone = None
            for count in counts_of_devices:
                batch = args.batch * (count if scaling == "weak" else 1)
                if batch % count:
                    continue
                arrays = train.draw_batch(phase, batch, args.size)
                rate = _measure_rate(built, variables, arrays, devices[:count], args.repeats)
                alone = alone or rate
                rows.append(
                    {
                        "phase": phase,
                        "scaling": scaling,
                        "devices": count,
                        "batch": batch,
                        "images/s": rate,
                        "efficiency": rate / alone / count,
                    }
                )
    return rows


def _measure_rate(
    built: Task,
    variables: dict[str, Any],
    batch: dict[str, np.ndarray],
    devices: list[jax.Device],
    repeats: int,
) -> float:
    """Measures images per second of a training step on some devices."""
    mesh = jax.sharding.Mesh(np.array(devices), (parallel.AXIS,))
    same = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(jax.device_get(make_state(built, variables)), same)
    step = train.map_step(built, devices=devices, donate_argnums=0)
    values = train.make_values(built)
    sharded = {k: v.reshape(len(devices), -1, *v.shape[1:]) for k, v in batch.items()}

    def once() -> None:
        nonlocal state
        state = step(state, sharded, values, jax.random.key(1))
        jax.block_until_ready(state)

    return len(batch["weight"]) / measure.time_fastest(once, repeats)


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--phase", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--simulate", type=int, nargs="+", default=[2], help="numbers of devices")
    parser.add_argument("--batch", type=int, default=20, help="patches on each device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step-seconds", type=float, help="on one device; default: by its peak")
    args = parser.parse_args()
    sent = [row for n in args.simulate for row in measure_volumes(n, args.phase, args.width)]
    measure.report("scaling_volume", vars(args), sent)
    model = []
    for row in sent[: len(args.phase)]:
        name = f"phase {row['phase']} step"
        flops = 1e9 * args.batch * counts.count_by_hand(name, args.size, args.width, padded=True)
        model += model_steps(row, args.step_seconds, flops)
    measure.report("scaling_model", vars(args), model)
    if jax.local_device_count() > 1:
        measure.report("scaling", vars(args), measure_rates(args))
    else:
        print("\none device only: rates on several are not measured")


if __name__ == "__main__":
    main()
