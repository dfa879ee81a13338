"""Patches to batches, with Grain."""

import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import grain.python as grain
import numpy as np
from grain._src.python.dataset.transformations import process_prefetch

from wsss_jax import parallel, signals
from wsss_jax import workers as worker_processes
from wsss_jax.errors import InputError
from wsss_jax.sources import Batch

if TYPE_CHECKING:
    pass

# Grain gives a process so many seconds to end, which one that loads, or has a batch to hand over,
# does not do before: by itself 25, more than most who stop a run wait before they kill it.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1


def read_batches(
    source: Sequence[Batch],
    batch_size: int,
    *,
    workers: int,
    seed: int | None = None,
    epochs: int = 1,
    drop_last: bool = False,
    start: int = 0,
    shared: bool = True,
) -> Generator[Batch, None, None]:
    """Batches of a source, in an order that follows from (seed, epoch) alone.

    A last batch that is not full is filled up with its last example at `weight` 0, so that all
    batches have one shape.

    Args:
      source: random access to elements.
      batch_size: examples in a batch.
      workers: processes that decode; 0 reads in threads of this process.
      seed: shuffles each epoch anew; None keeps the order of the source.
      epochs: how many.
      drop_last: leaves the last batch of an epoch out if it is not full.
      start: the number of batches, over all epochs, to leave out at the start.
      shared: each process gets, and reads, its own rows of every batch; False: all of them.

    Yields:
      the arrays of the elements stacked; `weight` (B,) float32: 1, or 0 for filling; `position`
      (B,) int32: the rows of the global batch that they are.

    Raises:
      InputError: a worker process died.
    """

    own = np.arange(batch_size, dtype=np.int32)
    own = own[parallel.local_rows(batch_size)] if shared else own

    def read(indices: Sequence[int]) -> Batch:
        count = len(indices)
        rows = [source[indices[min(i, count - 1)]] for i in own]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return batch | {"weight": (own < count).astype(np.float32), "position": own}

    dataset = grain.MapDataset.range(len(source))
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    dataset = dataset.batch(batch_size, drop_remainder=drop_last, batch_fn=list)
    dataset = dataset.repeat(epochs)[start:].map(read)
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        # Batches come through pipes: shared memory is small in containers, and outlives a kill.
        iterable = grain.experimental.WithOptionsIterDataset(
            iterable, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        )
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=worker_processes.initialize,
        )
    iterator = iter(iterable)
    try:
        # With the first batch all processes have been started. Those who stop a run may tell all of
        # its processes, but it needs them until its state is saved.
        stopping = signals.STOPPING if workers else ()
        with worker_processes.block_signals(*stopping):
            first = next(iterator, None)
        if first is not None:
            yield first
            yield from iterator
    except RuntimeError as error:
        if "Worker process" not in str(error):
            raise
        raise InputError(
            f"a process that decodes patches died ({str(error).splitlines()[0]}): give the same "
            "command again, with fewer --config.data.workers if memory was short"
        ) from error
    finally:
        iterator.close()


def map_patches(
    source: Sequence[Batch],
    batch_size: int,
    function: Callable[[Batch], dict[str, np.ndarray]],
    *,
    workers: int = 0,
) -> dict[str, np.ndarray]:
    """What a function finds for the patches of a source, which all processes share.

    Args:
      source: random access to elements.
      batch_size: examples in a batch, over all processes.
      function: batch -> named arrays (B, ...), of the process's rows.
      workers: as of `read_batches`.

    Returns:
      The arrays (N, ...) of all N patches in the order of the source, in every process.
    """
    found = []
    for batch in read_batches(source, batch_size, workers=workers):
        found.append({**function(batch), "weight": batch["weight"]})
    stacked = {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}
    # (processes, batches, rows, ...) -> (batches, processes, rows, ...), then one axis of patches
    whole = {
        name: np.moveaxis(array, 0, 1).reshape(-1, *array.shape[3:])
        for name, array in parallel.gather(stacked).items()
    }
    real = whole.pop("weight") > 0
    return {name: array[real] for name, array in whole.items()}


def count_steps(examples: int, batch_size: int, drop_last: bool) -> int:
    """How many batches `read_batches` yields in an epoch."""
    return examples // batch_size if drop_last else -(-examples // batch_size)
