"""Run by `test_resilience.py`: short jobs in processes that are killed, terminated, interrupted.

Everything but the network that is trained is what the jobs do. All is imported before the first
child is forked, so that a child only has to work.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import pytest
from absl import flags

from configs import base, base_rounds, base_sccam, base_tools
from data.dataset import load_dataset
from tests import tiny_tables
from tests.conftest import tiny_phase1, tiny_sccam
from wsss_jax import jobs, optimizers, parallel, schedules, signals, sources
from wsss_jax.checkpoints import has_checkpoint, list_steps
from wsss_jax.errors import InputError, Preempted
from wsss_jax.methods import classification, phase1
from wsss_jax.models.attention import find_peaks, progressive_dropout_attention
from wsss_jax.models.layers import BatchNorm, Conv, Dropout
from wsss_jax.training import loop
from wsss_jax.training.patches import Patches
from wsss_jax.training.task import Task

EPOCHS, STEPS = 3, 6
FAILING = 4  # a seed with which phase 1 fails and is well again after going back
GONE_AFTER = 20  # seconds, in which worker processes notice that they are alone
MIN_SHARE = 0.3  # which leaves out some of the drawn patches
SEED = int(os.environ.get("KILL_SEED", "0"))  # of the moments

Work = Callable[[Path], None]  # into a folder
Progress = Callable[[Path], int]  # of the work in a folder, which grows with it


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mu=None, weight=None, position=None):
        x = Conv(8, stride=4, name="conv")(x)
        norm = BatchNorm(axis_name=parallel.AXIS if train else None, name="bn")
        x = nn.relu(norm(x, use_running_average=not train, weight=weight))
        x = Dropout(0.5)(x, deterministic=not train, position=position)
        logits = nn.Dense(4, name="fc8")(x.mean(axis=(1, 2)))
        return logits, {"peaks": logits}


class _ClassWeights(nn.Module):
    largest: float

    @nn.compact
    def __call__(self, features):
        weights = self.param("kernel", nn.initializers.he_normal(), (1, 1, features, 4))
        return jnp.minimum(weights[0, 0], self.largest)


class AttendingNetwork(nn.Module):
    """The last layers of phase 1, with few features but logits as large as those of its 4096."""

    normalize: bool = False
    relu: bool = True
    features: int = 32
    largest: float = jnp.inf  # of the class weights: up to 0 no class map is above 0

    @nn.compact
    def __call__(self, x, *, train, mu=None, attention_share=None, weight=None, position=None):
        x = Conv(self.features, stride=4, name="conv")(x)
        norm = BatchNorm(axis_name=parallel.AXIS if train else None, name="bn7")
        x = nn.relu(norm(x, use_running_average=not train, weight=weight))
        x = 20 * x
        class_weights = _ClassWeights(self.largest, name="fc8")(self.features)
        taps = {"bn7": x, "peaks": find_peaks(x, class_weights)}
        if mu is not None:
            attended = progressive_dropout_attention(
                x,
                class_weights,
                mu,
                relu=self.relu,
                divisor=4,
                normalize=self.normalize,
                share=attention_share,
            )
            x = jnp.where(mu > 0, attended, x)
        return x.mean(axis=(1, 2)) @ class_weights, taps


def build_network(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> AttendingNetwork:
    """Stands in for `phase1.build_network` where there are four classes."""
    del num_classes, axis_name
    return AttendingNetwork(normalize=config.pda.normalize)


def make_attending_task(config: ml_collections.ConfigDict, patches: int) -> Task:
    """The task of phase 1, but for the network."""
    steps = config.epochs * (patches // config.batch_size)
    network = build_network(config, 4)
    return phase1.make_task(config, 4, steps)._replace(
        network=network, loss=phase1.make_loss(config, network), is_trained=lambda path: True
    )


def configure_failing(root: Path, seed: int) -> ml_collections.ConfigDict:
    """The released settings of phase 1, but that the attention begins after one of ten epochs."""
    config = tiny_phase1(root)
    config.seed, config.epochs, config.log_every = seed, 10, 2
    config.pda = base.phase1("", "reference").pda
    config.pda.off_epochs, config.pda.collapse_steps = 1, 6
    return config


def train_failing(root: Path, workdir: Path) -> None:
    """The attention collapses in the second of five epochs: the run goes back, more than once."""
    config = configure_failing(root, FAILING)
    config.epochs, config.checkpoint_every, config.select = 5, 2, "best"
    config.on_divergence = "restore"
    dataset = load_dataset("", root)
    source = sources.open_source(config.data, dataset, "train")
    task = make_attending_task(config, len(source))
    loop.fit(config, workdir, task, Patches(dataset, source), validate=_score)


def _score(variables: Any) -> dict[str, float]:
    return {"miou": float(jnp.sum(variables["params"]["fc8"]["kernel"]))}


def train(root: Path, workers: int, workdir: Path) -> None:
    """Eighteen steps in three epochs, a checkpoint after every other."""
    config = tiny_phase1(root)
    config.batch_size, config.checkpoint_every, config.log_every = 2, 2, 4
    config.epochs, config.select, config.data.workers = EPOCHS, "best", workers
    config.ema.decay = 0.5
    dataset = load_dataset("", root)
    source = sources.open_source(config.data, dataset, "train")
    network, rates = _Network(), schedules.learning_rates(config.optimizer, EPOCHS * STEPS)
    task = Task(
        network=network,
        totals=classification.count_patches,
        loss=phase1.make_loss(config, network),
        metrics=("loss", "patch_accuracy"),
        values=phase1.make_values(config.pda, STEPS),
        optimizer=optimizers.make_optimizer(config.optimizer, EPOCHS * STEPS, ("fc8",)),
        learning_rate=rates["weight"],
        is_trained=lambda path: True,
    )
    loop.fit(
        config,
        workdir,
        task,
        Patches(dataset, source),
        validate=_score,
    )


def train_sccam(root: Path, workdir: Path) -> None:
    """The round whose patches are clustered."""
    config = tiny_sccam(root)
    config.epochs = 1
    jobs.run(config, workdir)


def other_jobs(root: Path, runs: Path, regions: Path) -> dict[str, ml_collections.ConfigDict]:
    """The configurations of short jobs on trained runs."""
    masks = base.masks(str(runs / "phase1"))
    masks.data.workers, masks.batch_size, masks.sheet_patches = 0, 4, 0
    evaluate = base.evaluate(str(runs / "phase1"), "")
    evaluate.data.workers, evaluate.batch_size, evaluate.sheet_patches = 0, 4, 0
    relabel = base_rounds.relabel(str(runs / "phase2"))
    relabel.data.workers, relabel.batch_size, relabel.sheet_patches = 0, 4, 2
    relabel.min_share, relabel.tta = MIN_SHARE, "flips"
    prepare = base_tools.prepare(
        str(regions / "images"), str(regions / "masks"), "", str(root / "dataset.json")
    )
    prepare.codes = {name: (i,) for i, name in enumerate(load_dataset("", root).classes)}
    prepare.excluded, prepare.patch, prepare.stride, prepare.resize = (4,), 32, 8, 32
    prepare.workers = 2
    export = base_tools.export(str(runs / "phase1"))
    export.formats = ("safetensors", "orbax")
    convert = base_tools.convert(str(root / "dataset.json"))
    for settings in convert.jobs.values():
        settings.model.width = 1 / 16
        settings.data.patch_size = 32
    return {
        "masks": masks,
        "relabel": relabel,
        "evaluate": evaluate,
        "prepare": prepare,
        "export": export,
        "convert": convert,
        "cluster": base_sccam.cluster("tiny", 1),
        "tables": tiny_tables.make_config("plain", "phase1"),
    }


def do_job(config: ml_collections.ConfigDict, workdir: Path) -> None:
    config = config.copy_and_resolve_references()
    if config.job == "prepare":
        config.out = str(workdir)
        if workdir.exists():  # done, which the next start would refuse
            return
    done = config.job == "convert" and has_checkpoint(workdir)
    with pytest.raises(InputError, match="already holds") if done else nullcontext():
        jobs.run(config, workdir)  # where it is done too: a killed process left its lock


def start(work: Work, workdir: Path) -> int:
    """Works in a forked child, which writes `<workdir>.log`; returns its process number."""
    child = os.fork()
    if child:
        os.setpgid(child, child)
        return child
    status = 1
    try:
        os.setpgid(0, 0)
        signals.handle()
        log = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout.reconfigure(line_buffering=True)
        work(workdir)
        status = 0
    except Preempted as stopped:
        print(stopped, flush=True)
        status = signals.EXIT_PREEMPTED
    except SystemExit as stopped:
        status = stopped.code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(status)


def _of_group(group: int) -> list[str]:
    """The processes of a group that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (path / "stat").read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


def disturb(
    work: Work,
    folder: Path,
    number: signal.Signals,
    times: int,
    duration: float,
    name: str = "",
    after: Sequence[Progress | None] = (None,),
) -> None:
    """Sends a signal to runs, `times` in all.

    The same command continues in a workdir until it ends, then another is begun. A signal that came
    after a run had ended does not count. SIGINT goes to the worker processes, too, as it does at a
    terminal. None of them is left afterwards.

    The signals take turns with the entries of `after`: they come soon after the start has made that
    progress, or where it is None at a random moment.
    """
    moments, runs, sent = random.Random(SEED), 0, 0
    expected = -number if number == signal.SIGKILL else signals.EXIT_PREEMPTED
    while sent < times:
        workdir, status = folder / f"{name or number.name}{runs}", None
        runs += 1
        while status != 0:
            child = start(work, workdir)
            if sent < times:
                if progress := after[sent % len(after)]:
                    _wait_for(progress, workdir, child)
                    if number == signal.SIGKILL:  # which may fall into a checkpoint
                        time.sleep(moments.uniform(0, 0.2))
                else:
                    time.sleep(moments.uniform(0.05, duration))
                send = os.killpg if number == signal.SIGINT else os.kill
                send(child, number)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            log = workdir.with_suffix(".log")
            if status not in (0, expected):
                sys.exit(f"{workdir}: {status}: {log.read_text()}")
            if "Traceback" in log.read_text():
                sys.exit(f"{workdir}: {log.read_text()}")
            end = time.monotonic() + GONE_AFTER
            while left := _of_group(child):
                if time.monotonic() > end:
                    sys.exit(f"{workdir}: left after {number.name}: {left}")
                time.sleep(0.05)
            sent += status == expected


def _wait_for(progress: Progress, workdir: Path, child: int) -> None:
    before = progress(workdir)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if progress(workdir) > before:
            return
        time.sleep(0.005)


def _count(text: str, workdir: Path) -> int:
    log = workdir.with_suffix(".log")
    return log.read_text().count(text) if log.is_file() else 0


def _newest_checkpoint(workdir: Path) -> int:
    return max(list_steps(workdir), default=-1)


def undisturbed(work: Work, workdir: Path) -> float:
    """Works once; returns the seconds that it took."""
    begun = time.monotonic()
    _, status = os.waitpid(start(work, workdir), 0)
    if status:
        sys.exit(workdir.with_suffix(".log").read_text())
    return time.monotonic() - begun


def disturb_training(root: Path, folder: Path, kills: int, others: int) -> None:
    work = partial(train, root, 0)
    # Kills before the first checkpoint may be all that a slow machine gets at random moments.
    after = (_newest_checkpoint, None, partial(_count, "first step done"))
    undisturbed(work, folder / "compiling")
    duration = undisturbed(work, folder / "undisturbed")
    for number, times in (
        (signal.SIGKILL, kills),
        (signal.SIGTERM, others),
        (signal.SIGINT, others),
    ):
        disturb(work, folder, number, times, duration, after=after)
    with_workers = partial(train, root, 1)
    duration = undisturbed(with_workers, folder / "workers")
    for number in (signal.SIGKILL, signal.SIGINT):
        disturb(with_workers, folder, number, others // 2, duration, name=f"workers_{number.name}")
    failing = partial(train_failing, root)
    duration = undisturbed(failing, folder / "failing")
    after = (partial(_count, "going back"), None)
    for number, times in ((signal.SIGKILL, max(2, kills // 3)), (signal.SIGTERM, others)):
        name = f"failing_{number.name}"
        disturb(failing, folder, number, times, duration, name=name, after=after)


def disturb_others(root: Path, folder: Path, times: int, runs: Path, regions: Path) -> None:
    for name, config in other_jobs(root, runs, regions).items():
        (folder / name).mkdir()
        if name == "convert":
            config.weights = str(folder / "export" / "undisturbed" / "phase1.safetensors")
        if name == "cluster":
            config.run = str(folder / "sccam")
            config.k, config.batch_size, config.data.workers = 2, 4, 0
            undisturbed(partial(train_sccam, root), folder / "sccam")
        # Most of the time of "cluster" goes into loading.
        after = (partial(_count, "?patch/s") if name == "cluster" else None,)
        work = partial(do_job, config)
        duration = undisturbed(work, folder / name / "undisturbed")
        for number in (signal.SIGKILL, signal.SIGINT):
            disturb(work, folder / name, number, times, duration, after=after)


def main() -> None:
    which, root, folder, cache = sys.argv[1], *map(Path, sys.argv[2:5])
    flags.FLAGS.mark_as_parsed()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if which == "training":
        disturb_training(root, folder, *map(int, sys.argv[5:]))
    else:
        disturb_others(root, folder, int(sys.argv[5]), *map(Path, sys.argv[6:]))
