"""Fills the tables of the paper: trains and scores every method and ablation they compare."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from data.dataset import Dataset, load_dataset
from wsss_jax import chain_runner, chains, metrics, runs, statistics
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax.chain_runner import Failure, Plans, Problems
from wsss_jax.errors import InputError
from wsss_jax.jobs import evaluate
from wsss_jax.patch_confusions import Scored, load_scored, refuse_other_patches
from wsss_jax.report import colors, figures, paper_tables, tables_page
from wsss_jax.report.paper_tables import Measured, Table
from wsss_jax.report.tables_page import Details
from wsss_jax.sources import open_source

NESTED_LEVELS = 2  # config.jobs.<row>.<step>
_NUMBERS = tuple(table.number for table in paper_tables.TABLES)
PICTURES = "pictures"
_CURVES = "curves.png"  # of a training run
FIELDS = {
    "steps": rules.sequence(rules.NAME),
    "tables": rules.sequence(rules.one_of(*_NUMBERS)),
    "rows": rules.sequence(rules.NAME),
    "seeds": rules.sequence(rules.SEED),
    "title": rules.TEXT,
    "published": rules.TEXT,
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
    chosen = {row: config.jobs[row] for row in _list_rows(config)}
    plans = {seed: chains.plan(config.steps, chosen, workdir, seed) for seed in config.seeds}

    def write(problems: Problems) -> None:
        _write(config, workdir, plans, problems)

    chain_runner.run_chains(plans, workdir, write)


def _list_tables(config: ml_collections.ConfigDict) -> list[Table]:
    """Lists the chosen tables, reduced to the chosen rows."""
    return [
        table._replace(rows={row: text for row, text in table.rows.items() if row in config.rows})
        for table in paper_tables.TABLES
        if table.number in config.tables
    ]


def _list_rows(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Lists the rows of the chosen tables, each once."""
    return tuple(dict.fromkeys(row for table in _list_tables(config) for row in table.rows))


class _Row(NamedTuple):
    """What a row scored, by seed: its evaluations, and the accuracies of patch labels."""

    scored: dict[int, Scored]
    patches: dict[int, float]


def _write(
    config: ml_collections.ConfigDict, workdir: Path, plans: Plans, problems: Problems
) -> None:
    """Writes the tables of what is finished; adds to `problems` what cannot be read."""
    rows = _collect(plans, problems)
    if not rows:
        return
    first = next(iter(next(iter(rows.values())).scored.values()))
    measured = {
        row: Measured(
            {seed: statistics.score(_total(each)) for seed, each in of_row.scored.items()},
            of_row.patches,
        )
        for row, of_row in rows.items()
    }
    published = paper_tables.load_published(config.published, first.classes)
    grids = paper_tables.fill(_list_tables(config), first.classes, measured, published)
    paper_tables.write(workdir, grids, config.seeds)
    print(paper_tables.format_text(grids))
    pictures = workdir / PICTURES
    pictures.mkdir(exist_ok=True)
    titles = {line.row: line.title for grid in reversed(grids) for line in grid.lines}
    details = []
    for row, of_row in rows.items():
        seed, scored = next(iter(of_row.scored.items()))
        path = pictures / f"confusion_{row}.png"
        figures.write_confusion_matrix(path, _total(scored), first.classes)
        curves = {
            step.name: step.folder / _CURVES
            for step in plans[seed][row]
            if (step.folder / _CURVES).is_file()
        }
        details.append(Details(titles[row], path, curves))
    examples = pictures / "examples.png"
    shown = {titles[row]: next(iter(of_row.scored.values())) for row, of_row in rows.items()}
    _write_examples(config, examples, shown)
    texts = [
        f"{row}, seed {seed}: {f'{step} failed: ' if step else ''}{problem}"
        for (seed, row), (step, problem) in problems.items()
    ]
    tables_page.write(
        workdir, config.title, grids, examples if config.examples else None, details, texts
    )


def _collect(plans: Plans, problems: Problems) -> dict[str, _Row]:
    """Reads the evaluations of the finished chains."""
    rows: dict[str, _Row] = {}
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
            of_row = rows.setdefault(row, _Row({}, {}))
            of_row.scored[seed] = scored
            if accuracy is not None:
                of_row.patches[seed] = accuracy
    return rows


def _total(scored: Scored) -> np.ndarray:
    """Adds up the confusion matrices of all patches, of the last row of an evaluation."""
    return scored.confusions.counts[-1].sum(axis=0, dtype=np.int64)


def _write_examples(
    config: ml_collections.ConfigDict, path: Path, shown: Mapping[str, Scored]
) -> None:
    """Draws test patches, from bad to good ones of the last method, with the maps of all."""
    *_, last = shown.values()
    miou = metrics.patch_miou(last.confusions.counts[-1])
    ranked = [int(i) for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    count = min(config.examples, len(ranked))
    if not count:
        return
    job = config_lib.load(last.folder, "jobs")
    dataset = load_dataset(str(last.folder / runs.DATASET_FILE), last.folder)
    source = open_source(job.data, dataset, job.split)
    sheet = []
    for index in (ranked[i] for i in np.linspace(0, len(ranked) - 1, count + 2, dtype=int)[1:-1]):
        patch, name = source[index], source.names[index]
        truth = patch["masks"][0]
        masks = {
            title: _show(evaluate.load_prediction(each.folder, name, dataset), truth, dataset)
            for title, each in shown.items()
        }
        sheet.append(figures.SheetRow(name, patch["image"], masks, truth=truth))
    legend = colors.make_legend(dataset, config.palette)
    figures.write_demo_banner(path, sheet, legend, side_by_side=1)


def _show(label_map: np.ndarray, truth: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Leaves white what the truth excludes, which does not count."""
    return np.where(truth < dataset.num_classes, label_map, truth)
