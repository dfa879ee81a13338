"""Fills the tables of the paper: trains and scores every method and ablation they compare."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from data.dataset import Dataset, load_dataset
from wsss_jax import chain_runner, chains, metrics, runs, statistics
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax.chain_runner import Failure, Plans, Problems
from wsss_jax.chains import Chain
from wsss_jax.errors import InputError
from wsss_jax.jobs import evaluate
from wsss_jax.patch_confusions import Scored, load_scored, refuse_other_patches
from wsss_jax.report import colors, figures, paper_tables, tables_page
from wsss_jax.report.paper_tables import Filled, Measured, Table
from wsss_jax.report.tables_page import Details
from wsss_jax.sources import open_source

NESTED_LEVELS = 2  # config.jobs.<row>.<step>
_NUMBERS = tuple(table.number for table in paper_tables.TABLES)
# A row has one name in the page: that of the first table it is in.
_TITLES = {row: text for table in paper_tables.TABLES[::-1] for row, text in table.rows.items()}
PICTURES = "pictures"
_CURVES = "curves.png"  # of a training run
FIELDS = {
    "steps": rules.sequence(rules.NAME),
    "tables": rules.sequence(rules.one_of(*_NUMBERS)),
    "rows": rules.sequence(rules.NAME),
    "seeds": rules.sequence(rules.SEED),
    "title": rules.TEXT,
    "published": rules.one_of("", *paper_tables.list_published()),
    "examples": rules.integer(0, 100),
    "palette": rules.PALETTE,
}


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses what is no table, and chains that cannot be done; see `config.validate`."""
    chains.check_unique(config, ("steps", "tables", "rows", "seeds"), prefix)
    if not isinstance(config.get("jobs"), ml_collections.ConfigDict):
        raise InputError(f"{prefix}jobs must hold the rows {', '.join(config.rows)}")
    if unknown := [row for row in config.rows if row not in config.jobs]:
        raise InputError(f"{prefix}rows names {unknown[0]}, but there is: {', '.join(config.jobs)}")
    if not _list_rows(config):
        raise InputError(
            f"{prefix}rows {tuple(config.rows)} are in none of the tables "
            f"{', '.join(config.tables)}: choose other rows or --{prefix}tables"
        )
    for row, by_step in config.jobs.items():
        chains.check_steps(config.steps, by_step, f"{prefix}jobs.{row}")


@runs.shares_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Does what the chosen rows need, and writes the tables.

    Rows share the runs they have in common. Runs lie in `workdir/seed<seed>/<row>/<step>`; for how
    they are done, continued and shared out, see `chain_runner`. In `workdir`: `tables.txt` (also
    printed), `.md`, `.tex`, `.csv`, `.json`, `.html`, and `pictures/`.

    Raises:
      InputError: impossible settings; at the end, if steps failed.
      Preempted: SIGTERM or SIGINT came; the same command continues.
    """
    runs.check(config, workdir, started=False)  # each step sees to its own settings
    config_lib.save(config, workdir)
    plans = {seed: _plan(config, workdir, seed) for seed in config.seeds}
    _refuse_missing_weights(plans)

    if left_out := [row for row in config.rows if row not in _list_rows(config)]:
        print(f"in none of the tables {', '.join(config.tables)}: {', '.join(left_out)}")
    chain_runner.run_chains(plans, workdir, partial(_write, config, workdir, plans))


def _plan(config: ml_collections.ConfigDict, workdir: Path, seed: int) -> dict[str, Chain]:
    """Plans the chosen rows; what all rows share lies where it lay when more were chosen."""
    chosen = _list_rows(config)
    rows = {row: config.jobs[row] for row in (*chosen, *config.jobs)}
    plan = chains.plan(config.steps, rows, workdir, seed)
    return {row: plan[row] for row in chosen}


def _refuse_missing_weights(plans: Plans) -> None:
    """Refuses weights that are not there, which a chain would find out after days of training.

    What is finished needs them no more.
    """
    for by_row in plans.values():
        for row, chain in by_row.items():
            for step in chain:
                init = step.config.get("init", "")
                if not init or Path(init).exists() or Path(init) in step.earlier:
                    continue
                if not chains.is_finished(step):
                    raise InputError(
                        f"config.jobs.{row}.{step.name}.init: no such file or run {init}"
                    )


def _list_tables(config: ml_collections.ConfigDict) -> list[Table]:
    return [table for table in paper_tables.TABLES if table.number in config.tables]


def _list_rows(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Lists the chosen rows of the chosen tables, each once."""
    of_tables = dict.fromkeys(row for table in _list_tables(config) for row in table.rows)
    return tuple(row for row in of_tables if row in config.rows)


class _Evaluation(NamedTuple):
    """What an evaluation scored in its last row.

    Attributes:
      folder: of the evaluation.
      data_root: of its data, as planned: where the evaluation saw it may be another place now.
      total: (C, C + 1) counts of all patches.
      miou: patch -> its mIoU.
      patches: accuracy of the labels of patches; None if the method gives none.
    """

    folder: Path
    data_root: str
    total: np.ndarray
    miou: dict[str, float]
    patches: float | None


_Rows = dict[str, dict[int, _Evaluation]]  # by row and seed


def _write(
    config: ml_collections.ConfigDict, workdir: Path, plans: Plans, problems: Problems
) -> str:
    """Writes the tables of what is finished, and returns them as text.

    Adds to `problems` what cannot be read.
    """
    rows, first = _collect(plans, problems)
    classes: tuple[str, ...] = ()
    majority = None
    if first:  # all have its test patches
        total = first.confusions.counts[-1].sum(axis=0)
        classes, majority = first.classes, statistics.score(metrics.predict_majority(total))
    measured = {
        row: Measured(
            {seed: statistics.score(each.total) for seed, each in by_seed.items()},
            {seed: each.patches for seed, each in by_seed.items() if each.patches is not None},
        )
        for row, by_seed in rows.items()
    }
    published = paper_tables.load_published(config.published, classes)
    grids = paper_tables.fill(_list_tables(config), classes, measured, published, majority)
    missing = [f"{row}, seed {seed}: {failure}" for (seed, row), failure in problems.items()]
    results = Filled(tuple(grids), tuple(config.seeds), tuple(missing))
    paper_tables.write(workdir, results)
    pictures = workdir / PICTURES
    pictures.mkdir(exist_ok=True)
    details = _draw_rows(pictures, plans, rows, classes)
    examples, notice = _draw_examples(config, pictures, rows)
    shown = {examples, *(each.confusion for each in details)}
    for path in set(pictures.glob("*.png")) - shown:  # of rows that were chosen before
        path.unlink()
    tables_page.write(workdir, config.title, results, examples, details)
    return "\n\n".join(filter(None, (paper_tables.format_text(results), notice)))


def _draw_rows(pictures: Path, plans: Plans, rows: _Rows, classes: Sequence[str]) -> list[Details]:
    """Draws the confusion matrix of each row, and finds its curves."""
    details, shown_curves = [], set()
    for row, by_seed in rows.items():
        seed, evaluation = next(iter(by_seed.items()))
        path = pictures / f"confusion_{row}.png"
        figures.write_confusion_matrix(path, evaluation.total, classes)
        curves = {
            step.name: step.folder / _CURVES
            for step in plans[seed][row]
            if (step.folder / _CURVES).is_file() and step.folder not in shown_curves
        }
        shown_curves |= {path.parent for path in curves.values()}  # once, of what rows share
        details.append(Details(_TITLES[row], path, curves))
    return details


def _draw_examples(
    config: ml_collections.ConfigDict, pictures: Path, rows: _Rows
) -> tuple[Path | None, str]:
    """Draws test patches; returns the picture, if there is one, and why there is none."""
    path = pictures / "examples.png"
    shown = {_TITLES[row]: next(iter(by_seed.values())) for row, by_seed in rows.items()}
    try:
        drawn = _write_examples(config, path, shown)
    except InputError as error:  # the patches may have been moved since
        return None, f"no picture of test patches: {error}"
    return (path if drawn else None), ""


def _collect(plans: Plans, problems: Problems) -> tuple[_Rows, Scored | None]:
    """Reads the evaluations of the finished chains; the first of them, if there is one."""
    rows: _Rows = {}
    first: Scored | None = None
    for seed, by_row in plans.items():
        for row, chain in by_row.items():
            if (seed, row) in problems:
                continue
            step = chain[-1]
            try:
                scored = load_scored(step.folder)
                first = first or scored
                refuse_other_patches(scored, first)
                accuracy = evaluate.load_patch_accuracy(step.folder)
            except InputError as error:
                again = f"{error} (remove {chains.record_path(step.folder)} to evaluate again)"
                problems[seed, row] = Failure(step.name, again)
                continue
            counts = scored.confusions.counts[-1]
            rows.setdefault(row, {})[seed] = _Evaluation(
                step.folder,
                _find_root(chain),
                counts.sum(axis=0, dtype=np.int64),
                dict(zip(scored.confusions.names, metrics.patch_miou(counts).tolist())),
                accuracy,
            )
    return rows, first


def _find_root(chain: Chain) -> str:
    """Returns the folder of the data that a chain names first; the others take it from there."""
    roots = (step.config.data.root for step in chain if "data" in step.config)
    return next(filter(None, roots))


def _write_examples(
    config: ml_collections.ConfigDict, path: Path, shown: Mapping[str, _Evaluation]
) -> bool:
    """Draws test patches, from bad to good ones of the last method, with the maps of all.

    Returns:
      Whether there were any to draw.
    """
    if not shown or not config.examples:
        return False
    *_, last = shown.values()
    dataset = load_dataset(str(last.folder / runs.DATASET_FILE), last.folder)
    job = config_lib.load(last.folder, "jobs")
    source = open_source(
        config_lib.fill(job, {"data.root": last.data_root}).data, dataset, job.split
    )
    indices = {name: index for index, name in enumerate(source.names)}
    ranked = sorted(
        (name for name, miou in last.miou.items() if name in indices and not math.isnan(miou)),
        key=lambda name: last.miou[name],
    )
    if not ranked:
        return False
    sheet = []
    for place in evaluate.spread(len(ranked), config.examples):
        name = ranked[place]
        patch = source[indices[name]]
        truth = patch["masks"][0]
        masks = {
            title: _show(evaluate.load_prediction(each.folder, name, dataset), truth, dataset)
            for title, each in shown.items()
        }
        sheet.append(figures.SheetRow(name, patch["image"], masks, truth=truth))
    legend = colors.make_legend(dataset, config.palette)
    figures.write_demo_banner(path, sheet, legend, side_by_side=1)
    return True


def _show(label_map: np.ndarray, truth: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Leaves white what the truth excludes, which does not count."""
    return np.where(truth < dataset.num_classes, label_map, truth)
