"""Does what is left of chains of jobs, shared out over processes; failures cost their own chain."""

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from wsss_jax import chains, jobs, signals
from wsss_jax import config as config_lib
from wsss_jax.chains import Chain, Step
from wsss_jax.errors import Busy, InputError, describe_shortage
from wsss_jax.files import atomic_path, hold_lock


class Failure(NamedTuple):
    """Why a seed of a variant has no scores.

    Attributes:
      step: that failed; "" = none has, yet.
      problem: what to say about it.
    """

    step: str
    problem: str

    def __str__(self) -> str:
        return f"{self.step} failed: {self.problem}" if self.step else self.problem


class _Elsewhere(NamedTuple):
    """The step of a chain on which another process works."""

    step: str


Plans = Mapping[int, Mapping[str, Chain]]  # by seed and variant
Problems = dict[tuple[int, str], Failure]  # by seed and variant
# Writes the results of all chains but those with problems, to which it may add; returns what to
# print of them at the end.
Write = Callable[[Problems], str]

_UNFINISHED = Failure("", "not finished yet")
_TABLE_WAIT = 600.0  # seconds for another process to make its table
_PAUSE = 5.0  # seconds between two looks at what other processes do
_MOST_SHOWN = 3  # chains or failures in a line


def run_chains(plans: Plans, workdir: Path, write: Write) -> None:
    """Does all that is not finished, and has the results written: after each chain, of all so far.

    A step that fails costs its own chain, and those that share it. Several processes share the work
    out. One that finds nothing to do waits for the others, and goes on with what one that ends has
    left; each writes the results of all, one after the other.

    Args:
      plans: see `chains.plan`.
      workdir: of the job.
      write: see `Write`.

    Raises:
      InputError: at the end, if steps failed.
      Preempted: SIGTERM or SIGINT came.
    """
    for failed in _do_all(plans):
        # Alone, and after another look at what others did, which may be what has failed here.
        with hold_lock(workdir / ".table.lock", wait=_TABLE_WAIT):
            problems = {
                (seed, variant): failed.get((seed, variant), _UNFINISHED)
                for seed, by_variant in plans.items()
                for variant, chain in by_variant.items()
                if not all(map(chains.is_finished, chain))
            }
            text = write(problems)
    if text:
        print(text)
    if problems:
        texts = [
            f"seed {seed}, {variant}{step and f', {step}'}: {problem}"
            for (seed, variant), (step, problem) in problems.items()
        ]
        total = sum(map(len, plans.values()))
        shown = " | ".join(texts[:_MOST_SHOWN])
        raise InputError(f"{len(problems)} of {total} chains failed: {shown}")


def _do_all(plans: Plans) -> Iterator[Problems]:
    """Does what is not finished, until all is.

    Yields:
      What has failed, by seed and variant: after each chain that was finished here, and at the end.
    """
    problems: Problems = {}
    failed: dict[Path, Failure] = {}  # runs that several variants share fail once
    todo = [(seed, variant) for seed, by_variant in plans.items() for variant in by_variant]
    shown = ""
    while todo:
        elsewhere: dict[tuple[int, str], _Elsewhere] = {}
        for seed, variant in todo:
            to_do = not all(map(chains.is_finished, plans[seed][variant]))
            outcome = _do_chain(plans[seed], seed, variant, failed)
            if isinstance(outcome, _Elsewhere):
                elsewhere[seed, variant] = outcome
            elif outcome is not None:
                problems[seed, variant] = outcome
            elif to_do:
                yield problems
        if len(elsewhere) == len(todo):
            if (text := _format_waiting(elsewhere)) != shown:
                print(text, flush=True)
            shown = text
            _wait()
        todo = list(elsewhere)  # meanwhile, another process may have done what they wait for
    yield problems


def _wait() -> None:
    time.sleep(_PAUSE)


def _format_waiting(elsewhere: Mapping[tuple[int, str], _Elsewhere]) -> str:
    texts = [f"seed {seed}, {variant}: {at.step}" for (seed, variant), at in elsewhere.items()]
    more = len(texts) - _MOST_SHOWN
    shown = "; ".join(texts[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"waiting for other processes: {shown}"


def _do_chain(
    plans: Mapping[str, Chain], seed: int, variant: str, failed: dict[Path, Failure]
) -> Failure | _Elsewhere | None:
    """Does the steps that are left; returns why it could not, and adds failures to `failed`."""
    for step in plans[variant]:
        if step.folder in failed:
            return failed[step.folder]
        if chains.is_finished(step):
            continue
        lock = step.folder.with_name(f".{step.name}.lock")
        with ExitStack() as stack:
            try:
                if not stack.enter_context(hold_lock(lock)):
                    print(f"{lock.parent}: no locks here: let one process work in it only")
            except Busy:
                return _Elsewhere(step.name)
            if chains.is_finished(step):  # by another process since
                continue
            title = f"seed {seed}, {variant}: {step.name}"
            print(f"--- {title}", flush=True)
            problem = _try_step(step)
        if problem:
            problem = config_lib.name_nested(problem, step.config, f"jobs.{variant}.{step.name}")
            others = [
                other
                for other, chain in plans.items()
                if other != variant and step.folder in (each.folder for each in chain)
            ]
            if others and "--config." in problem:
                problem += f" (shared with {', '.join(others)}: set it for them, too)"
            print(f"{title} FAILED: {problem}", flush=True)
            failed[step.folder] = Failure(step.name, problem)
            return failed[step.folder]
    return None


def _try_step(step: Step) -> str:
    """Does a step; returns why it failed where that concerns this step alone, or ""."""
    try:
        _do_step(step)
    except InputError as error:
        return str(error)
    except OSError as error:
        if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # concerns all of them
        return f"{error.filename}: {error.strerror}; correct that and give the same command again"
    except Exception as error:
        if not (shortage := describe_shortage(error)):
            raise
        signals.check()
        remedies = [
            f"{verb} --config.{field}"
            for verb, field in (("lower", "batch_size"), ("switch on", "rematerialize"))
            if field in step.config
        ]
        return f"{shortage}: {' or '.join(remedies) or 'end other programs'}"
    return ""


def _do_step(step: Step) -> None:
    """Runs a job, between the records of its beginning and of its end.

    A job that refuses its settings leaves what was done with others: their record comes back.
    """
    record, description = chains.record_path(step.folder), chains.describe(step)
    before = record.read_bytes() if record.is_file() else None
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    chains.write_beginning(step, description)
    try:
        jobs.run(step.config, step.folder)
    except InputError:
        if before is None:
            record.unlink()
        else:
            with atomic_path(record) as path:
                path.write_bytes(before)
        raise
    chains.write_record(step, description)
