"""Scores as the paper's table rows for the terminal, and as JSON and CSV files."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss_jax.files import atomic_path
from wsss_jax.spreadsheets import escape_text, write_rows

# Key in `metrics.segmentation_scores` and heading, in the order of the paper's Tables I to III.
SUMMARY_COLUMNS = {"fwiou": "FwIoU", "miou": "mIoU", "acc": "ACC"}

PATCHES = "patches"  # key of the scores of patch labels, see `metrics.multilabel_scores`

Scores = Mapping[str, Any]
_LEADING_ZERO = re.compile(r"^(-?)0(?=\.)")  # of .75130, and of differences such as -.01200


def format_table(rows: Sequence[tuple[str, Scores]], classes: Sequence[str]) -> str:
    """Formats the paper's table: IoU per class, FwIoU, mIoU, ACC, aligned for a terminal.

    Args:
      rows: (name, scores) as `metrics.segmentation_scores` returns; an undefined score is a dash.
      classes: C names.
    """
    headings = [*classes, *SUMMARY_COLUMNS.values()]
    width = max(map(len, ["method", *(name for name, _ in rows)]))
    heading = _align("method", headings, headings, width)
    lines = [_align(name, _format_scores(scores), headings, width) for name, scores in rows]
    return "\n".join([heading, "-" * len(heading), *lines])


def write_scores(
    path_json: Path | str,
    path_csv: Path | str,
    rows: Sequence[tuple[str, Scores]],
    classes: Sequence[str],
    meta: Mapping[str, Any],
) -> None:
    """Writes the same rows in full precision as JSON and as CSV, each atomically.

    Args:
      path_json: `{"meta": ..., "classes": [...], "rows": [{"name", "iou": {class: ...}, "fwiou",
        "miou", "acc", "class_acc", "patches"}]}`; an undefined score is null. "patches" are the
        scores of patch labels, or null.
      path_csv: a heading and one line per row; an undefined score is an empty cell.
      rows: (name, scores) as `metrics.segmentation_scores` returns.
      classes: C names.
      meta: what was evaluated (split, checkpoint, ...), of JSON types.
    """
    records = []
    headings = ["name", *map(escape_text, classes), *SUMMARY_COLUMNS.values(), "class ACC"]
    lines: list[list[str | float | None]] = [[*headings]]
    for name, scores in rows:
        iou = [_to_json(value) for value in scores["iou"]]
        summary = {key: _to_json(scores[key]) for key in (*SUMMARY_COLUMNS, "class_acc")}
        patches = _clear_undefined(scores.get(PATCHES))
        records.append(
            {"name": name, "iou": dict(zip(classes, iou, strict=True)), **summary, PATCHES: patches}
        )
        lines.append([escape_text(name), *iou, *summary.values()])
    document = {"meta": dict(meta), "classes": list(classes), "rows": records}
    with atomic_path(path_json) as json_path, atomic_path(path_csv) as csv_path:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        json_path.write_text(text + "\n", encoding="utf-8")
        with csv_path.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, lines)


def _format_scores(scores: Scores) -> list[str]:
    values = [*scores["iou"], *(scores[key] for key in SUMMARY_COLUMNS)]
    return [*map(format_score, values)]


def format_score(value: float) -> str:
    """Writes a score as the paper does, .75130; an undefined one as a dash."""
    return "-" if math.isnan(value) else _LEADING_ZERO.sub(r"\1", f"{value:.5f}")


def _align(name: str, cells: Sequence[str], headings: Sequence[str], name_width: int) -> str:
    columns = zip(cells, headings, strict=True)
    return "  ".join(
        [name.ljust(name_width), *(cell.rjust(max(len(head), 7)) for cell, head in columns)]
    )


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _clear_undefined(value: Any) -> Any:
    """Replaces nan by None, on any level."""
    if isinstance(value, Mapping):
        return {name: _clear_undefined(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return list(map(_clear_undefined, value))
    return _to_json(value) if isinstance(value, float) else value
