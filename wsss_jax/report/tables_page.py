"""The HTML page of the paper's tables, with what a reader wants to look at beside them."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_jax.report.pages import make_data_url, write_page
from wsss_jax.report.paper_tables import Filled, Grid, Line
from wsss_jax.report.tables import format_score

PAGE = "tables.html"


class Details(NamedTuple):
    """Pictures of one row, as PNG files.

    Attributes:
      title: what tables call it.
      confusion: its confusion matrix.
      curves: of the trainings behind it, by the name of the step.
    """

    title: str
    confusion: Path
    curves: Mapping[str, Path]


def write(
    workdir: Path,
    title: str,
    filled: Filled,
    examples: Path | None,
    details: Sequence[Details],
) -> None:
    """Writes `tables.html`, which holds its pictures itself.

    Args:
      workdir: the folder.
      title: names the data set.
      filled: the tables.
      examples: picture of test patches with the maps of several methods, if there is one.
      details: of the rows.
    """
    write_page(
        workdir / PAGE,
        "tables.html",
        {"score": format_score, "picture": _read_picture},
        title=title,
        filled=filled,
        grids=[(grid, _group_rows(grid)) for grid in filled.grids],
        examples=examples,
        details=details,
    )


def _group_rows(grid: Grid) -> list[list[Line]]:
    return [list(lines) for _, lines in itertools.groupby(grid.lines, lambda line: line.row)]


def _read_picture(path: Path) -> str:
    return make_data_url("image/png", path.read_bytes())
