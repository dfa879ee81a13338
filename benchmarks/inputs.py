"""Measures decoded, shuffled, batched patches per second, and how long training waits for them.

python -m benchmarks.inputs

Measures both sources of the training loop, PNG files and ArrayRecord, on drawn tissue, by the
number of processes that decode (0: threads of this process). "waiting" is the share of the time
after the first batch that `next(batches)` takes if every batch is followed by a step. The step
leaves the processor idle for `--step-seconds`, as with an accelerator; with `--train-width`, it is
the real step of phase 1, which competes with the decoding on a CPU. Each step is waited for; in
training, decoding overlaps with the step before.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks import measure
from benchmarks.train import build_phase, init_variables, make_config, make_values
from data import synthetic
from wsss_jax import inputs, parallel, sources
from wsss_jax.training.step import make_state, train_step

SOURCES = {"folder": "PNG files", "tfds": "ArrayRecord"}
READ_AHEAD = 8  # batches that may be ready when the clock starts


def measure_read_rate(batches: Iterator[sources.Batch], batch_size: int) -> float:
    """Measures patches per second of an iterator after its first batches."""
    for _ in range(READ_AHEAD):
        next(batches)
    start = end = time.perf_counter()
    count = 0
    for _ in batches:
        count += 1
        end = time.perf_counter()  # not after the loop, which waits for the processes to end
    return count * batch_size / (end - start)


def measure_waiting_share(
    batches: Iterator[sources.Batch], step: Callable[[sources.Batch], None]
) -> float:
    """Measures the share of time, after the first batch and step, that `next(batches)` takes."""
    step(next(batches))
    waiting = 0.0
    start = begun = time.perf_counter()
    for batch in batches:
        waiting += time.perf_counter() - begun
        step(batch)
        begun = time.perf_counter()
    return waiting / (begun - start)


def make_phase1_step(width: float) -> Callable[[sources.Batch], None]:
    """Makes a training step of phase 1 that waits for its result."""
    built = build_phase(1, "float32", width)
    state = make_state(built, init_variables(built.network))
    values = make_values(built)
    mapped = parallel.map_train_step(partial(train_step, built))

    def step(batch: sources.Batch) -> None:
        nonlocal state
        state = jax.block_until_ready(mapped(state, batch, values, jax.random.key(1)))

    return step


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for every source and number of workers."""
    step, name = lambda batch: time.sleep(args.step_seconds), f"{args.step_seconds} s"
    if args.train_width:
        step, name = make_phase1_step(args.train_width), f"phase 1, width {args.train_width:g}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(1, "float32", 1.0).data
        config.root, config.patch_size = str(Path(folder) / "data"), args.size
        counts = {"train": args.patches}
        synthetic.write_dataset(config.root, counts, args.size, seed=0, workers=os.cpu_count() or 1)
        for kind, text in SOURCES.items():
            config.source = kind
            source = sources.open_source(config, synthetic.DATASET, "train")
            for workers in args.workers:
                to_rate, to_wait = (
                    inputs.read_batches(
                        source,
                        args.batch,
                        workers=workers,
                        order=inputs.Order(0, epochs, drop_last=True),
                    )
                    for epochs in (args.epochs, args.wait_epochs)
                )
                rows.append(
                    {
                        "source": text,
                        "workers": workers,
                        "patches/s": measure_read_rate(to_rate, args.batch),
                        "step": name,
                        "waiting": measure_waiting_share(to_wait, step),
                    }
                )
    return rows


def main() -> None:
    cores = os.cpu_count() or 1
    counts = [0, *(2**i for i in range(cores.bit_length()))]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=counts)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--size", type=int, default=224, help="pixels, height and width")
    parser.add_argument("--patches", type=int, default=400, help="in the data set")
    parser.add_argument("--epochs", type=int, default=6, help="to read for the rate")
    parser.add_argument("--wait-epochs", type=int, default=3, help="to read for the wait")
    parser.add_argument("--step-seconds", type=float, default=0.05)
    parser.add_argument("--train-width", type=float, help="factor on the channels of a real step")
    args = parser.parse_args()
    if args.patches // args.batch * args.epochs <= READ_AHEAD:
        parser.error(
            f"the rate is measured after {READ_AHEAD} batches, and {args.patches} patches in "
            f"{args.epochs} epochs give fewer: raise --patches or --epochs"
        )
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes look at absl's flags
    measure.report("inputs", vars(args), run(args))


if __name__ == "__main__":
    main()
