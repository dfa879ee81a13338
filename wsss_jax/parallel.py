"""Everything that knows how many devices there are.

State and settings carry no device axis: they go in with `in_axes=None` and come back with
`out_axes=None`, which returns the value of the first device. So whatever a mapped function returns
that way must be equal on all devices: sums and means over `AXIS` are the function's business.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wsss_jax.errors import InputError

AXIS = "batch"


def check_batch_size(batch_size: int) -> None:
    """Refuses a batch that cannot be divided among the local devices."""
    devices = jax.local_device_count()
    if batch_size % devices:
        near = max(devices, batch_size // devices * devices)
        raise InputError(
            f"config.batch_size is {batch_size}, which {devices} devices cannot share evenly: "
            f"set --config.batch_size={near}"
        )


def keep_compiled_programs() -> None:
    """Compiles a program once for all runs: in the user's cache folder, or where JAX is told to."""
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "wsss_jax"))


def replicated() -> jax.sharding.Sharding:
    """Where `pmap` keeps arrays without device axis: a copy on every local device.

    State that enters a mapped step placed like this does not compile it a second time.
    """
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def shard(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(B, ...) -> (devices, B / devices, ...) for every array."""
    devices = jax.local_device_count()
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}


def map_train_step(step: Callable) -> Callable:
    """Maps `step(state, batch, values, rng)` over the local devices.

    The batch is sharded here; the state that goes in is donated. What comes back must be the same
    on all devices.
    """
    mapped = jax.pmap(step, AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0)
    # Several steps in flight dead-lock the collectives of simulated CPU devices.
    wait = jax.default_backend() == "cpu" and jax.local_device_count() > 1

    def run(state: Any, batch: dict[str, np.ndarray], values: Any, rng: jax.Array) -> Any:
        out = mapped(state, shard(batch), values, rng)
        return jax.block_until_ready(out) if wait else out

    return run


def map_batch(function: Callable) -> Callable:
    """Maps `function(variables, batch) -> arrays (B, ...)` over the local devices.

    Returns a function of the whole batch whose results are NumPy arrays (B, ...).
    """
    mapped = jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=0)

    def run(variables: Any, batch: dict[str, np.ndarray]) -> Any:
        out = mapped(variables, shard(batch))
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), out)

    return run
