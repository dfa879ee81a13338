"""Devices and processes: only this module knows how many there are.

State and settings have no device axis: they go in with `in_axes=None` and come back with
`out_axes=None`, which returns the value of the first device. What a mapped function returns that
way must therefore be equal on all devices; the function itself sums or averages over `AXIS`.

With several processes, one for each host, the mapped training step runs over the devices of all of
them, and each process brings its own rows of every batch. Predictions run over the devices of each
process alone.
"""

import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from wsss_jax.errors import InputError

AXIS = "batch"
# Environment variables with the number of processes, set by launchers that start one per host.
_LAUNCHERS: dict[str, Callable[[str], int]] = {
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda hosts: len(hosts.split(",")),
}


def start(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes of a run; does nothing for a single one.

    Call it before any other function of JAX.

    Args:
      coordinator: address and port of the first process, "host:port"; "auto": JAX asks the launcher
        or the machine; None: the same, if a launcher has started several processes.
      processes: their number.
      process: index of this one, from 0.

    Raises:
      InputError: only some of the three are given, or the others cannot be reached.
    """
    launched = coordinator == "auto"
    coordinator = None if launched else coordinator
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise InputError("--coordinator, --processes and --process go together: give all three")
    launched = launched or any(
        name in os.environ and count(os.environ[name]) > 1 for name, count in _LAUNCHERS.items()
    )
    if not (launched or any(given)):
        return
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes of this run did not find each other ({str(error).splitlines()[0]}): "
            "check --coordinator, --processes and --process, and that all were started"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes the files of a run."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(arrays: Any) -> Any:
    """Stacks a tree of NumPy arrays, of equal shapes in all processes, over these: (P, ...)."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], arrays)
    return multihost_utils.process_allgather(arrays)


def agree_to_stop(step: int, *, terminated: bool) -> bool:
    """Decides, for all processes alike, whether to stop after a step, if some got a signal."""
    if jax.process_count() == 1:
        return terminated
    return multihost_utils.reached_preemption_sync_point(step)


def check_batch_size(batch_size: int, parts: int = 1) -> None:
    """Refuses a batch size that cannot be divided among all devices, and there into `parts`."""
    devices = jax.device_count()
    if batch_size % (devices * parts):
        near = max(1, batch_size // (devices * parts)) * devices * parts
        each = f" in {parts} parts each" if parts > 1 else ""
        raise InputError(
            f"config.batch_size is {batch_size}, which {devices} devices cannot share evenly"
            f"{each}: set --config.batch_size={near}"
        )


def advise_batch_size(batch_size: int, parts: int = 1) -> str | None:
    """Says which batches accelerators compute faster in bfloat16; None if it is this one.

    Their units multiply blocks of 8 and more; TPUs fill what is missing with zeros.
    """
    divisor = jax.device_count() * parts
    each = batch_size // divisor
    if jax.default_backend() == "cpu" or each % 8 == 0:
        return None
    near = -(-each // 8) * 8 * divisor
    return (
        f"config.batch_size is {batch_size}, {each} images at a time on each device: accelerators "
        f"compute bfloat16 fastest in multiples of 8, such as --config.batch_size={near} (another "
        "batch size is another training: see docs/devices.md, Precision)"
    )


def local_rows(batch_size: int) -> slice:
    """Returns the rows of a global batch that belong to this process."""
    own = batch_size // jax.process_count()
    return slice(jax.process_index() * own, (jax.process_index() + 1) * own)


def cache_compiled_programs() -> None:
    """Caches compiled programs for later runs, in the user's cache folder or as JAX is told.

    Programs are code: without a folder of the user's own, each run compiles them again.
    """
    # JAX makes the attributes of its configuration at run time.
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_compilation_cache_dir", str(_make_cache_folder()))
    except (InputError, OSError, RuntimeError) as error:  # RuntimeError: no home folder
        print(
            f"compiled programs are not cached for later runs: {error}; set "
            "JAX_COMPILATION_CACHE_DIR to a folder of your own",
            file=sys.stderr,
        )


def _make_cache_folder() -> Path:
    """Makes the cache folder, which nobody but the user may read or write.

    Raises:
      InputError: it belongs to another user, or is a link of one; XDG_CACHE_HOME is a relative
        path.
      OSError, RuntimeError: it cannot be made, or there is no home folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not cache.is_absolute():  # such as ~/cache, which only a shell expands
        raise InputError(f"XDG_CACHE_HOME is {cache}, not an absolute path")
    folder = cache / "wsss_jax"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not {folder.lstat().st_uid, folder.stat().st_uid} == {os.geteuid()}:
        raise InputError(f"{folder} belongs to another user")
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def name_device() -> str:
    """Returns the kind of the devices, such as "NVIDIA H100 80GB HBM3"; of CPUs the processor."""
    device = jax.local_devices()[0]
    return name_processor() if device.platform == "cpu" else device.device_kind


def name_platform() -> str:
    """Returns the platform of the devices as `jax.lax.platform_dependent` names it."""
    device = jax.local_devices()[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version else "cuda"


def name_processor() -> str:
    """Returns the processor's name, which `platform` lacks on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def local_sharding() -> jax.sharding.Sharding:
    """Returns the sharding of arrays without device axis in `pmap`: a copy on each local device.

    A mapped step compiles only once if its state enters with this sharding.
    """
    return _replicate_over(jax.local_devices())


def global_sharding() -> jax.sharding.Sharding:
    """Returns the sharding that Orbax expects of equal arrays: a copy on all devices."""
    return _replicate_over(jax.devices())


def _replicate_over(devices: list[jax.Device]) -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def to_global(tree: Any) -> Any:
    """Converts arrays of `local_sharding` to `global_sharding`, without moving data."""
    if jax.process_count() == 1:
        return tree
    sharding = global_sharding()

    def convert(x: jax.Array) -> jax.Array:
        copies = [jax.device_put(x.addressable_data(0), d) for d in jax.local_devices()]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)

    return jax.tree.map(convert, tree)


def to_local(tree: Any) -> Any:
    """Converts arrays back; inverts `to_global`."""
    if jax.process_count() == 1:
        return tree
    return jax.device_put(jax.tree.map(lambda x: x.addressable_data(0), tree), local_sharding())


def shard(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the process's rows (B, ...) into (local devices, B / local devices, ...)."""
    devices = jax.local_device_count()
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}


def map_train_step(step: Callable) -> Callable:
    """Maps `step(state, batch, values, rng)` over the devices of all processes.

    The batch, with the rows of this process, is split here; the state that goes in is donated. The
    result must be the same on all devices.
    """
    mapped = jax.pmap(step, AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0)
    # Several steps at once deadlock the collectives of simulated CPU devices.
    wait = jax.default_backend() == "cpu" and jax.device_count() > 1

    def run(state: Any, batch: dict[str, np.ndarray], values: Any, rng: jax.Array) -> Any:
        out = mapped(state, shard(batch), values, rng)
        return jax.block_until_ready(out) if wait else out

    return run


class PendingArray:
    """An array (B, ...) that is still computed: NumPy waits for it when it asks for the values."""

    def __init__(self, sharded: jax.Array):
        sharded.copy_to_host_async()
        self._sharded = sharded

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.asarray(self._sharded)
        return whole.reshape(-1, *whole.shape[2:])


def map_batch(function: Callable, *, wait: bool = True) -> Callable:
    """Maps `function(variables, batch) -> arrays (B, ...)` over the local devices.

    Args:
      function: of one device's share of the batch.
      wait: False returns at once, with arrays of `PendingArray`.

    Returns:
      a function of the variables and this process's batch, whose results are NumPy arrays (B, ...).
      Processes do not wait for each other.
    """
    mapped = jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=0, devices=jax.local_devices())

    def run(variables: Any, batch: dict[str, np.ndarray]) -> Any:
        pending = jax.tree.map(PendingArray, mapped(variables, shard(batch)))
        return jax.tree.map(np.asarray, pending) if wait else pending

    return run
