"""Does chains of jobs with several seeds, and compares their variants."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from wsss_jax import chain_runner, chains, patch_confusions, runs, statistics
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax.chain_runner import Failure, Plans, Problems
from wsss_jax.errors import InputError
from wsss_jax.patch_confusions import Scored
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


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses what is no chain; see `config.validate`."""
    chains.check_unique(config, ("steps", "variants", "seeds"), prefix)
    if not isinstance(config.get("jobs"), ml_collections.ConfigDict) or set(config.jobs) != set(
        config.variants
    ):
        raise InputError(f"{prefix}jobs must hold the variants {', '.join(config.variants)}")
    for variant, by_step in config.jobs.items():
        chains.check_steps(config.steps, by_step, f"{prefix}jobs.{variant}")


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
    variants = {variant: config.jobs[variant] for variant in config.variants}
    plans = {seed: chains.plan(config.steps, variants, workdir, seed) for seed in config.seeds}

    def write(problems: Problems) -> str:
        results = _collect(config, plans, problems)
        if results is None:
            return ""
        report.write(workdir, results)
        return report.format_text(results)

    chain_runner.run_chains(plans, workdir, write)


def _collect(
    config: ml_collections.ConfigDict, plans: Plans, problems: Problems
) -> report.Results | None:
    """Reads what the finished chains scored, and compares the variants with the first.

    What cannot be read, or was scored on other test patches than the first, is added to `problems`.
    """
    counts: dict[str, dict[str, dict[int, np.ndarray]]] = {}  # by variant, row, seed and unit
    first: Scored | None = None
    bootstrap = config.bootstrap
    for variant in config.variants:
        for seed in config.seeds:
            if (seed, variant) in problems:
                continue
            step = plans[seed][variant][-1]
            try:
                scored = patch_confusions.load_scored(step.folder)
                first = first or scored
                patch_confusions.refuse_other_patches(scored, first)
            except InputError as error:
                again = f"{error} (remove {chains.record_path(step.folder)} to evaluate again)"
                problems[seed, variant] = Failure(step.name, again)
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
    notice = ""
    if bootstrap.region and not regions and len(counts) > 1:
        notice = (
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
            report.Missing(variant, seed, *failure) for (seed, variant), failure in problems.items()
        ],
        notice=notice,
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
