"""Run by `test_resilience.py`: trains a tiny network in processes that are killed.

Everything but the network is what phase 1 trains with. All is imported before the first child is
forked, so that a child only has to train.
"""

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from data.dataset import load_dataset
from tests.conftest import tiny_phase1
from wsss_jax import inputs, parallel, phase1, schedules, training
from wsss_jax.errors import Preempted
from wsss_jax.models.layers import BatchNorm, Conv, Dropout

EXIT_PREEMPTED = 75
EPOCHS, STEPS = 3, 6


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mu=None, weight=None, position=None):
        x = Conv(8, stride=4, name="conv")(x)
        norm = BatchNorm(axis_name=parallel.AXIS if train else None, name="bn")
        x = nn.relu(norm(x, use_running_average=not train, weight=weight))
        x = Dropout(0.5)(x, deterministic=not train, position=position)
        return nn.Dense(4, name="fc8")(x.mean(axis=(1, 2))), {}


def train(root: Path, workdir: Path, cache: Path) -> None:
    """Eighteen steps in three epochs, a checkpoint after every other."""
    flags.FLAGS.mark_as_parsed()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config = tiny_phase1(root)
    config.batch_size, config.checkpoint_every, config.log_every = 2, 2, 4
    config.epochs, config.select = EPOCHS, "best"
    dataset = load_dataset("", root)
    source = inputs.open_source(config.data, dataset, "train")
    model, rates = _Network(), schedules.learning_rates(config.optimizer, EPOCHS * STEPS)
    phase = training.Phase(
        model=model,
        totals=phase1.totals,
        loss=partial(phase1.loss_function, config, model),
        optimizer=schedules.sgd(config.optimizer, EPOCHS * STEPS, phase1.HEAD_MODULES),
        learning_rate=rates["weight"],
        is_trainable=lambda path: True,
        metrics=("loss", "patch_accuracy"),
        values=lambda epoch: {"mu": schedules.mu(epoch, config.pda)},
        validate=lambda variables: {"miou": float(jnp.sum(variables["params"]["fc8"]["kernel"]))},
    )
    training.fit(config, dataset, workdir, phase, source)


def start(root: Path, workdir: Path, cache: Path) -> int:
    """Trains in a forked child, which writes `<workdir>.log`; returns its process number."""
    child = os.fork()
    if child:
        return child
    try:
        log = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(root, workdir, cache)
        status = 0
    except Preempted as stopped:
        print(stopped, flush=True)
        status = EXIT_PREEMPTED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        status = 1
    sys.stdout.flush()
    os._exit(status)


def disturb(
    root: Path, folder: Path, cache: Path, number: signal.Signals, times: int, duration: float
) -> None:
    """Sends a signal to runs at random moments, `times` in all.

    The same command goes on in a workdir until it ends, then another is begun.
    """
    moments, runs = random.Random(0), 0
    while times:
        workdir, status = folder / f"{number.name}{runs}", None
        runs += 1
        while status != 0:
            child = start(root, workdir, cache)
            if times:
                time.sleep(moments.uniform(0, duration))
                os.kill(child, number)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status not in (0, -number, EXIT_PREEMPTED):
                sys.exit(f"{workdir}: {status}: {workdir.with_suffix('.log').read_text()}")
            times -= times > 0 and status != 0


def main() -> None:
    root, folder, cache = map(Path, sys.argv[1:4])
    for name in ("compiling", "undisturbed"):
        begun = time.monotonic()
        _, status = os.waitpid(start(root, folder / name, cache), 0)
        duration = time.monotonic() - begun
        if status:
            sys.exit((folder / f"{name}.log").read_text())
    disturb(root, folder, cache, signal.SIGKILL, int(sys.argv[4]), duration)
    disturb(root, folder, cache, signal.SIGTERM, int(sys.argv[5]), duration)


if __name__ == "__main__":
    main()
