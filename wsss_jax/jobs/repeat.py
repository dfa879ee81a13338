"""Does chains of jobs with several seeds, and compares their variants."""

import errno
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from data.dataset import load_dataset
from wsss_jax import chains, jobs, patch_confusions, runs, signals, statistics
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax.chains import Chain, Step
from wsss_jax.errors import Busy, InputError, describe_shortage
from wsss_jax.files import atomic_path, hold_lock
from wsss_jax.patch_confusions import PatchConfusions
from wsss_jax.report import seeds as report
from wsss_jax.statistics import Bootstrap

NESTED_LEVELS = 2  # config.jobs.<variant>.<step>


def _is_region(value: object) -> bool:
    if not rules.TEXT.allows(value):
        return False
    try:
        return value == "" or re.compile(str(value)).groups > 0
    except (re.error, OverflowError, RecursionError):
        return False


FIELDS = {
    "steps": rules.sequence(rules.NAME),
    "variants": rules.sequence(rules.NAME),
    "seeds": rules.sequence(rules.SEED),
    "bootstrap.region": rules.Rule(
        _is_region, "a regular expression with a group, (...), for the region, or empty"
    ),
    "bootstrap.resamples": rules.integer(1, 10**6),
    "bootstrap.confidence": rules.number(0.5, 0.999),
    "bootstrap.seed": rules.SEED,
}
# Their results lie elsewhere than in their workdir, or they hold jobs themselves.
_UNFIT = ("prepare", "demo", "doctor", "repeat")


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses what is no chain; see `config.validate`."""
    for field in ("steps", "variants", "seeds"):
        values = config[field]
        if not values or len(set(values)) < len(values):
            raise InputError(f"{prefix}{field} is {tuple(values)}: give at least one, none twice")
    if not isinstance(config.get("jobs"), ml_collections.ConfigDict) or set(config.jobs) != set(
        config.variants
    ):
        raise InputError(f"{prefix}jobs must hold the variants {', '.join(config.variants)}")
    for variant, by_step in config.jobs.items():
        _check_chain(config.steps, by_step, f"{prefix}jobs.{variant}")


def _check_chain(steps: tuple[str, ...], by_step: ml_collections.ConfigDict, path: str) -> None:
    """Refuses a variant whose steps are unknown, out of order, or not scored at the end."""
    own = [step for step in steps if step in by_step]
    if unknown := sorted(set(by_step) - set(steps)):
        raise InputError(f"{path}.{unknown[0]} is none of the steps {', '.join(steps)}")
    if not own or by_step[own[-1]].job != "evaluate":
        raise InputError(f"{path}: the last step must be an evaluation, whose scores are compared")
    for index, step in enumerate(own):
        job = by_step[step].job
        if job in _UNFIT:
            raise InputError(
                f"{path}.{step}: the job {job!r} cannot be repeated: run it before, by itself"
            )
        names = set(chains.list_texts(by_step[step].to_dict()))
        for later in (name for name in steps if name not in own[:index]):
            if chains.name_default(later) in names:
                raise InputError(
                    f"{path}.{step} reads {chains.name_default(later)}, but no step {later} is "
                    "before it: correct the order of the steps, or name another run"
                )


class _Failure(NamedTuple):
    """Why a seed of a variant has no scores."""

    step: str
    problem: str


class _Elsewhere(NamedTuple):
    """The step of a chain on which another process works."""

    step: str


_Plans = Mapping[int, Mapping[str, Chain]]  # by seed and variant

_TABLE_WAIT = 600.0  # seconds for another process to make its table
_PAUSE = 5.0  # seconds between two looks at what other processes do
_MOST_SHOWN = 3  # chains or failures in a line


@runs.shares_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Does all steps of all variants with all seeds, and writes the table of their scores.

    Each step is an ordinary run in `workdir/seed<seed>/<variant>/<step>`; see `chains.plan`. Steps
    that are finished are not done again. A step that fails costs its own seed and variant, and
    those that share it. Several processes, also on hosts that see the same folder, share the work
    out when each is given this command. One that finds nothing to do waits for the others, goes on
    with what one that ends has left, and writes the table of all.

    In `workdir`: `scores.txt` (also printed), `.csv` and `.json`, and `seeds.png`.

    Raises:
      InputError: impossible settings; at the end, if steps failed.
      Preempted: SIGTERM or SIGINT came; the same command continues.
    """
    runs.check(config, workdir, started=False)  # each step sees to its own settings
    config_lib.save(config, workdir)
    plans = {seed: chains.plan(config, workdir, seed) for seed in config.seeds}
    problems = _do_all(plans)
    # Alone, and after another look at what others did, which may be what has failed here.
    with hold_lock(workdir / ".table.lock", wait=_TABLE_WAIT):
        problems = {
            (seed, variant): problem
            for (seed, variant), problem in problems.items()
            if not all(map(chains.is_finished, plans[seed][variant]))
        }
        results = _collect(config, plans, problems)
        if results is not None:
            report.write(workdir, results)
            print(report.format_text(results))
    if problems:
        texts = [
            f"seed {seed}, {variant}, {step}: {problem}"
            for (seed, variant), (step, problem) in problems.items()
        ]
        total = len(config.seeds) * len(config.variants)
        shown = " | ".join(texts[:_MOST_SHOWN])
        raise InputError(f"{len(problems)} of {total} chains failed: {shown}")


def _do_all(plans: _Plans) -> dict[tuple[int, str], _Failure]:
    """Does what is not finished, until all is; returns what failed, by seed and variant."""
    problems: dict[tuple[int, str], _Failure] = {}
    failed: dict[Path, _Failure] = {}  # runs that several variants share fail once
    todo = [(seed, variant) for seed, by_variant in plans.items() for variant in by_variant]
    shown = ""
    while todo:
        elsewhere: dict[tuple[int, str], _Elsewhere] = {}
        for seed, variant in todo:
            outcome = _do_chain(plans[seed][variant], seed, variant, failed)
            if isinstance(outcome, _Elsewhere):
                elsewhere[seed, variant] = outcome
            elif outcome is not None:
                problems[seed, variant] = outcome
        if len(elsewhere) == len(todo):
            if (text := _format_waiting(elsewhere)) != shown:
                print(text, flush=True)
            shown = text
            _wait()
        todo = list(elsewhere)  # meanwhile, another process may have done what they wait for
    return problems


def _wait() -> None:
    time.sleep(_PAUSE)


def _format_waiting(elsewhere: Mapping[tuple[int, str], _Elsewhere]) -> str:
    texts = [f"seed {seed}, {variant}: {at.step}" for (seed, variant), at in elsewhere.items()]
    more = len(texts) - _MOST_SHOWN
    shown = "; ".join(texts[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"waiting for other processes: {shown}"


def _do_chain(
    chain: Chain, seed: int, variant: str, failed: dict[Path, _Failure]
) -> _Failure | _Elsewhere | None:
    """Does the steps that are left; returns why it could not, and adds failures to `failed`."""
    for step in chain:
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
            print(f"{title} FAILED: {problem}", flush=True)
            failed[step.folder] = _Failure(step.name, problem)
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
    """Runs a job, between the removal and the writing of its record.

    A job that refuses its settings leaves what was finished with others: its record comes back.
    """
    record, description = chains.record_path(step.folder), chains.describe(step)
    before = record.read_bytes() if record.is_file() else None
    record.unlink(missing_ok=True)
    try:
        jobs.run(step.config, step.folder)
    except InputError:
        if before is not None:
            with atomic_path(record) as path:
                path.write_bytes(before)
        raise
    chains.write_record(step, description)


def _collect(
    config: ml_collections.ConfigDict,
    plans: _Plans,
    problems: dict[tuple[int, str], _Failure],
) -> report.Results | None:
    """Reads what the finished chains scored, and compares the variants with the first.

    What cannot be read, or was scored on other test patches than the first, is added to `problems`.
    """
    counts: dict[str, dict[str, dict[int, np.ndarray]]] = {}  # by variant, row, seed and unit
    first: _Scored | None = None
    bootstrap = config.bootstrap
    for variant in config.variants:
        for seed in config.seeds:
            if (seed, variant) in problems:
                continue
            step = plans[seed][variant][-1]
            try:
                scored = _load_scored(step.folder)
                first = first or scored
                _refuse_other_patches(scored, first)
            except InputError as error:
                again = f"{error} (remove {chains.record_path(step.folder)} to evaluate again)"
                problems[seed, variant] = _Failure(step.name, again)
                continue
            units, _ = statistics.find_units(scored.confusions.names, bootstrap.region)
            for row, of_row in zip(scored.confusions.rows, scored.confusions.counts, strict=True):
                by_unit = statistics.sum_by_unit(of_row, units)
                counts.setdefault(variant, {}).setdefault(row, {})[seed] = by_unit
    if first is None:
        return None
    classes, names = first.classes, first.confusions.names
    settings = Bootstrap(bootstrap.resamples, bootstrap.confidence, bootstrap.seed)
    of_patches, regions = statistics.find_units(names, bootstrap.region)
    if bootstrap.region and not regions and len(counts) > 1:
        print(
            f"config.bootstrap.region fits the name of no patch (such as {names[0]}), so that the "
            "intervals are over single patches, and too narrow if several are of one region"
        )
    return report.Results(
        classes=classes,
        patches=len(names),
        units=report.describe_units(of_patches, regions),
        bootstrap=settings,
        scores={
            variant: {
                row: {seed: statistics.score(each.sum(axis=0)) for seed, each in by_seed.items()}
                for row, by_seed in rows.items()
            }
            for variant, rows in counts.items()
        },
        differences=_compare(config.variants, counts, settings),
        missing=[
            report.Missing(variant, seed, problem.step, problem.problem)
            for (seed, variant), problem in problems.items()
        ],
    )


class _Scored(NamedTuple):
    """An evaluation: its folder, the classes, and what it counted."""

    folder: Path
    classes: tuple[str, ...]
    confusions: PatchConfusions


def _load_scored(folder: Path) -> _Scored:
    classes = load_dataset(str(folder / runs.DATASET_FILE), folder).classes
    return _Scored(folder, classes, patch_confusions.load(folder))


def _refuse_other_patches(scored: _Scored, first: _Scored) -> None:
    """Refuses scores that cannot be compared with the first ones."""
    one, other = scored.confusions, first.confusions
    if (scored.classes, one.names) != (first.classes, other.names):
        raise InputError(
            f"{scored.folder} scored other patches or classes than {first.folder}: evaluate all "
            "variants on the same split of the same data"
        )
    truth, expected = one.counts[0].sum(axis=-1), other.counts[0].sum(axis=-1)
    if (truth != expected).any():
        name = one.names[int((truth != expected).any(axis=-1).argmax())]
        raise InputError(
            f"{scored.folder} was scored on another true mask of {name} than {first.folder}: the "
            "masks have changed in between"
        )


def _compare(
    variants: Sequence[str],
    counts: Mapping[str, Mapping[str, Mapping[int, np.ndarray]]],
    bootstrap: Bootstrap,
) -> list[report.Comparison]:
    """Compares each row of each variant with that of the first, where both have it."""
    baseline, *others = variants
    return [
        report.Comparison(variant, baseline, row, difference)
        for variant in others
        for row, of_baseline in counts.get(baseline, {}).items()
        if (of_variant := counts.get(variant, {}).get(row)) is not None
        and (difference := statistics.compare(of_baseline, of_variant, bootstrap)) is not None
    ]
