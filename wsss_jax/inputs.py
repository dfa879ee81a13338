"""Batches of patches, read with Grain."""

import sys
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import grain.python as grain
import numpy as np
from grain._src.python.dataset.transformations import process_prefetch

from wsss_jax import parallel, signals
from wsss_jax import workers as worker_processes
from wsss_jax.errors import InputError
from wsss_jax.sources import Batch, Examples

# Seconds that Grain gives a process to end. A process that loads, or has a batch to hand over, does
# not end by itself, and Grain's 25 seconds are more than most users wait before they kill a run.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1


class Order(NamedTuple):
    """Which batches are read, and in which order.

    Attributes:
      seed: shuffles each epoch differently; None keeps the order of the source.
      epochs: their number.
      drop_last: leaves out the last batch of an epoch if it is not full.
      start: number of batches, over all epochs, to leave out at the start.
    """

    seed: int | None = None
    epochs: int = 1
    drop_last: bool = False
    start: int = 0


UNSHUFFLED = Order()


@runtime_checkable
class ChangingExamples(Protocol):
    """Examples that differ from epoch to epoch."""

    def read_in_epoch(self, epoch: int, index: int, /) -> Batch:
        """Reads the element that an epoch, counted from 0, shows at an index."""


def read_batches(
    source: Examples,
    batch_size: int,
    *,
    workers: int,
    order: Order = UNSHUFFLED,
    shared: bool = True,
) -> Generator[Batch, None, None]:
    """Reads the batches of a source, in an order that depends on (seed, epoch) alone.

    Sources that are `ChangingExamples` are asked for what they show in each epoch.

    A last batch that is not full is filled with its last example at `weight` 0, so that all batches
    have one shape.

    Args:
      source: random access to elements.
      batch_size: examples in a batch.
      workers: processes that decode; 0 reads in threads of this process.
      order: which batches, and in which order.
      shared: each process reads its own rows of every batch; False: all rows.

    Yields:
      the arrays of the elements stacked; `weight` (B,) float32: 1, or 0 for filling; `position`
      (B,) int32: their rows in the global batch.

    Raises:
      InputError: a worker process died.
    """
    own = np.arange(batch_size, dtype=np.int32)
    own = own[parallel.local_rows(batch_size)] if shared else own

    def read(numbered: tuple[int, Sequence[int]]) -> Batch:
        epoch, indices = numbered
        count = len(indices)
        places = [indices[i] for i in np.minimum(own, count - 1)]
        if isinstance(source, ChangingExamples):
            rows = [source.read_in_epoch(epoch, index) for index in places]
        else:
            rows = [source[index] for index in places]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return batch | {"weight": (own < count).astype(np.float32), "position": own}

    dataset = grain.MapDataset.range(len(source))
    if order.seed is not None:
        dataset = dataset.shuffle(seed=order.seed)
    dataset = dataset.batch(batch_size, drop_remainder=order.drop_last, batch_fn=list)
    steps = len(dataset)
    dataset = dataset.repeat(order.epochs)
    dataset = dataset.map_with_index(lambda number, indices: (number // steps, indices))
    dataset = dataset[order.start :].map(read)
    with signals.defer():  # one that a signal leaves half made cannot be closed
        iterator = iter(_prefetch(dataset, workers))
    try:
        # The first batch starts all processes. Signals that stop a run may reach all of its
        # processes, but the run needs them until its state is saved.
        with worker_processes.block_signals(*(signals.STOPPING if workers else ())):
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


def _prefetch(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Reads batches in advance, in threads of this process or, with `workers`, in processes."""
    iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4))
    if not workers:
        return iterable
    # Batches come through pipes: shared memory is small in containers, and outlives a kill.
    iterable = grain.experimental.WithOptionsIterDataset(
        iterable, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    )
    return iterable.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=worker_processes.initialize,
    )


def map_patches(
    source: Examples,
    batch_size: int,
    function: Callable[[Batch], dict[str, np.ndarray]],
    *,
    workers: int = 0,
) -> dict[str, np.ndarray]:
    """Applies a function to all patches of a source, with the work shared by all processes.

    Args:
      source: random access to elements.
      batch_size: examples in a batch, over all processes.
      function: batch -> named arrays (B, ...), for the rows of this process.
      workers: as of `read_batches`.

    Returns:
      The arrays (N, ...) of all N patches in the order of the source, in every process.
    """
    results = [
        {**function(batch), "weight": batch["weight"]}
        for batch in read_batches(source, batch_size, workers=workers)
    ]
    stacked = {name: np.stack([arrays[name] for arrays in results]) for name in results[0]}
    # (processes, batches, rows, ...) -> (batches, processes, rows, ...), then one axis of patches
    whole = {
        name: np.moveaxis(array, 0, 1).reshape(-1, *array.shape[3:])
        for name, array in parallel.gather(stacked).items()
    }
    is_real = whole.pop("weight") > 0
    return {name: array[is_real] for name, array in whole.items()}


def count_steps(examples: int, batch_size: int, drop_last: bool) -> int:
    """Counts the batches that `read_batches` yields in an epoch."""
    return examples // batch_size if drop_last else -(-examples // batch_size)
