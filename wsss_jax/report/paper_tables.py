"""The tables of the paper, filled with what was measured beside what was published."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax import statistics
from wsss_jax.files import atomic_path
from wsss_jax.report.tables import SUMMARY_COLUMNS, format_score
from wsss_jax.spreadsheets import escape_text, write_rows

TEXT, MARKDOWN, CSV, LATEX, JSON = (f"tables.{end}" for end in ("txt", "md", "csv", "tex", "json"))
_PATCHES = "accuracy of patch labels"
_LEFT_OUT = len(statistics.SUMMARY) - len(SUMMARY_COLUMNS)  # class ACC, the last of all scores
MAJORITY = "majority"  # a line that is no row of the job


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
      number: as in the paper.
      title: what it compares.
      rows: name of a row of the job `tables` -> what the table calls it.
      of_patches: it scores the labels of patches, not pixels.
    """

    number: str
    title: str
    rows: Mapping[str, str]
    of_patches: bool = False


TABLES = (
    Table(
        "I",
        "Comparison with other methods",
        {
            "histosegnet": "HistoSegNet",
            "sccam": "SC-CAM",
            "phase1": "phase 1",
            "gated": "phase 2 + gate",
            "tuned": "tuned, phase 2 + gate (not in the paper)",
        },
    ),
    Table(
        "II",
        "Comparison with full supervision",
        {"gated": "pseudo masks, with the gate", "supervised": "true masks"},
    ),
    Table(
        "III",
        "Ablations",
        {
            "plain": "(1) phase 1, no attention",
            "constant": "(2) phase 1, constant dropout attention",
            "phase1": "(3) phase 1, progressive dropout attention",
            "b4_3": "(4) phase 2, b4_3",
            "b5_2": "(5) phase 2, b5_2",
            "bn7": "(6) phase 2, bn7",
            "phase2": "(7) phase 2, three layers",
            "gated": "(8) phase 2, three layers, gate",
        },
    ),
    Table(
        "IV",
        "Patch labels with and without progressive dropout attention",
        {"plain": "without", "phase1": "with"},
        of_patches=True,
    ),
)


class Measured(NamedTuple):
    """What a row of the job scored.

    Attributes:
      pixels: seed -> scores (C + 4,) of label maps; see `statistics`.
      patches: seed -> accuracy of the labels of patches; empty for methods that give none.
    """

    pixels: Mapping[int, np.ndarray]
    patches: Mapping[int, float]


class Line(NamedTuple):
    """A line of a table.

    Attributes:
      row: its name in the job.
      title: its name in the table.
      statistic: "published", "measured" (mean over the seeds), "sd" (their standard deviation,
        n - 1) or "difference" (measured - published).
      values: one for each heading; nan where undefined.
      seeds: that were measured; none for what no seed changes.
    """

    row: str
    title: str
    statistic: str
    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()


class Grid(NamedTuple):
    """A filled table: its lines, and the headings of their values."""

    table: Table
    headings: tuple[str, ...]
    lines: tuple[Line, ...]


class Filled(NamedTuple):
    """All tables, and what they are made of.

    Attributes:
      grids: the tables.
      seeds: that were asked for.
      missing: why rows or seeds are not in them.
    """

    grids: tuple[Grid, ...]
    seeds: tuple[int, ...]
    missing: tuple[str, ...] = ()


def list_published() -> tuple[str, ...]:
    """Lists the data sets of the paper."""
    return tuple(_read_published())


def load_published(name: str, classes: Sequence[str]) -> Mapping[str, Mapping[str, list[float]]]:
    """Loads the figures of the paper: number of the table -> row -> values.

    Args:
      name: of the data set in `published.json`; "" or another = there are none.
      classes: of the data set at hand. With others the figures say nothing about it.
    """
    published = _read_published().get(name, {})
    if published.pop("classes", None) != list(classes):
        return {}
    return published


def _read_published() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def fill(
    tables: Sequence[Table],
    classes: Sequence[str],
    measured: Mapping[str, Measured],
    published: Mapping[str, Mapping[str, Sequence[float]]],
    majority: np.ndarray | None = None,
) -> list[Grid]:
    """Fills tables; a row that was neither measured nor published is left out.

    Args:
      tables: of `TABLES`.
      classes: C names.
      measured: by row.
      published: see `load_published`.
      majority: scores (C + 4,) of the most frequent class everywhere, which every method should
        beat: the last line of tables that score pixels.
    """
    grids = []
    for table in tables:
        headings = (_PATCHES,) if table.of_patches else (*classes, *SUMMARY_COLUMNS.values())
        lines: list[Line] = []
        for row, title in table.rows.items():
            by_seed = _select(measured[row], table) if row in measured else {}
            known = published.get(table.number, {}).get(row)
            lines += [
                Line(row, title, statistic, tuple(map(float, values)), tuple(by_seed))
                for statistic, values in _summarize(by_seed, known)
            ]
        if lines and majority is not None and not table.of_patches:
            values = tuple(map(float, majority[:-_LEFT_OUT]))
            lines.append(Line(MAJORITY, "majority class", "measured", values))
        if lines:
            grids.append(Grid(table, headings, tuple(lines)))
    return grids


def _select(measured: Measured, table: Table) -> dict[int, np.ndarray]:
    """Returns what a table shows of each seed, (K,)."""
    if table.of_patches:
        return {seed: np.array([value]) for seed, value in measured.patches.items()}
    return {seed: vector[:-_LEFT_OUT] for seed, vector in measured.pixels.items()}


def _summarize(
    by_seed: Mapping[int, np.ndarray], published: Sequence[float] | None
) -> Iterator[tuple[str, Sequence[float] | np.ndarray]]:
    seeds = np.stack(list(by_seed.values())) if by_seed else None
    if published is not None:
        yield "published", published
    if seeds is not None:
        yield "measured", statistics.mean(seeds)
        if len(seeds) > 1:
            yield "sd", statistics.standard_deviation(seeds)
        if published is not None:
            yield "difference", statistics.mean(seeds) - published


def write(workdir: Path, filled: Filled) -> None:
    """Writes `tables.txt`, `.md`, `.tex`, `.csv` (one value in a line) and `.json`."""
    grids, seeds, _ = filled
    texts = {
        TEXT: format_text(filled),
        MARKDOWN: "\n\n".join(_format_markdown(grid, seeds) for grid in grids),
        LATEX: "\n\n".join(_format_latex(grid, seeds) for grid in grids),
        JSON: json.dumps(_describe(filled), indent=2, ensure_ascii=False, allow_nan=False),
    }
    for name, text in texts.items():
        with atomic_path(workdir / name) as path:
            path.write_text(text + "\n", encoding="utf-8")
    cells: list[list[Any]] = [["table", "row", "title", "statistic", "seeds", "score", "value"]]
    for grid in grids:
        for line in grid.lines:
            for heading, value in zip(grid.headings, line.values, strict=True):
                names = [grid.table.number, line.row, line.title, line.statistic]
                names += [" ".join(map(str, line.seeds)), heading]
                cells.append([*map(escape_text, names), _to_json(value)])
    with atomic_path(workdir / CSV) as path, path.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, cells)


def format_text(filled: Filled) -> str:
    """Formats the tables for a terminal, and what is missing in them."""
    parts = [_format_grid(grid, filled.seeds) for grid in filled.grids]
    return "\n\n".join([*parts, *(f"not in the tables: {text}" for text in filled.missing)])


def _format_grid(grid: Grid, seeds: Sequence[int]) -> str:
    rows = [("method", "", *grid.headings), *_list_cells(grid, seeds)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(max(width, 7))
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([_format_caption(grid), lines[0], rule, *lines[1:]])


def _format_caption(grid: Grid) -> str:
    return f"Table {grid.table.number}. {grid.table.title}"


def _list_cells(grid: Grid, seeds: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Yields title, statistic and values of each line; the title once for each row.

    Where a row has not all `seeds`, those it has are in brackets.
    """
    before = None
    for line in grid.lines:
        title = "" if line.row == before else line.title
        before = line.row
        statistic = line.statistic
        if line.seeds and line.seeds != tuple(seeds):
            statistic += f" [{' '.join(map(str, line.seeds))}]"
        yield title, statistic, *map(format_score, line.values)


def _format_markdown(grid: Grid, seeds: Sequence[int]) -> str:
    def join(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.translate(_MARKDOWN) for cell in cells)} |"

    rule = ["---", "---", *["---:"] * len(grid.headings)]
    return "\n".join(
        [
            f"**{_format_caption(grid)}**",
            "",
            join(["method", "", *grid.headings]),
            join(rule),
            *map(join, _list_cells(grid, seeds)),
        ]
    )


_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|"})
_LATEX = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


def _format_latex(grid: Grid, seeds: Sequence[int]) -> str:
    """Formats a table that needs the package booktabs."""

    def join(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            f"\\caption{{{grid.table.title.translate(_LATEX)}}}",
            f"\\begin{{tabular}}{{ll{'r' * len(grid.headings)}}}",
            r"\toprule",
            join(["method", "", *grid.headings]),
            r"\midrule",
            *map(join, _list_cells(grid, seeds)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _describe(filled: Filled) -> dict[str, Any]:
    """Returns the content of the JSON file; an undefined score is null."""
    tables = []
    for grid in filled.grids:
        rows: dict[str, dict[str, Any]] = {}
        for line in grid.lines:
            values = list(map(_to_json, line.values))
            classes = len(grid.headings) - len(SUMMARY_COLUMNS)
            # Apart: a class may be called as a score is.
            scores: dict[str, Any] = (
                {"accuracy": values[0]}
                if grid.table.of_patches
                else {
                    "iou": dict(zip(grid.headings[:classes], values[:classes], strict=True)),
                    **dict(zip(SUMMARY_COLUMNS, values[classes:], strict=True)),
                }
            )
            row = {"row": line.row, "title": line.title, "seeds": list(line.seeds)}
            rows.setdefault(line.row, row)[line.statistic] = scores
        tables.append(
            {"table": grid.table.number, "title": grid.table.title, "rows": list(rows.values())}
        )
    return {"seeds": list(filled.seeds), "tables": tables, "missing": list(filled.missing)}


def _to_json(value: float) -> float | None:
    return None if np.isnan(value) else value
