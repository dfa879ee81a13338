"""Scores as the paper's table rows for the terminal, and as JSON and CSV files."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss_jax import spreadsheets
from wsss_jax.files import atomic_path

# Key in `metrics.segmentation_scores` and heading, in the order of the paper's Tables I to III.
SUMMARY_COLUMNS = {"fwiou": "FwIoU", "miou": "mIoU", "acc": "ACC"}

Scores = Mapping[str, Any]


def format_table(rows: Sequence[tuple[str, Scores]], classes: Sequence[str]) -> str:
    """Formats the paper's table: IoU per class, FwIoU, mIoU, ACC, aligned for a terminal.

    Args:
      rows: (name, scores) as `metrics.segmentation_scores` returns; an undefined score is a dash.
      classes: C names.
    """
    headings = _list_headings(classes)
    width = max(len(name) for name, _ in [("method", {}), *rows])
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
        "miou", "acc", "class_acc"}]}`; an undefined score is null.
      path_csv: a heading and one line per row; an undefined score is an empty cell.
      rows: (name, scores) as `metrics.segmentation_scores` returns.
      classes: C names.
      meta: what was evaluated (split, checkpoint, ...), of JSON types.
    """
    records = [
        {
            "name": name,
            "iou": dict(zip(classes, map(_to_json, scores["iou"]), strict=True)),
            **{key: _to_json(scores[key]) for key in (*SUMMARY_COLUMNS, "class_acc")},
        }
        for name, scores in rows
    ]
    document = {"meta": dict(meta), "classes": list(classes), "rows": records}
    with atomic_path(path_json) as json_path, atomic_path(path_csv) as csv_path:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        json_path.write_text(text + "\n", encoding="utf-8")
        with csv_path.open("w", encoding="utf-8", newline="") as file:
            names = [spreadsheets.escape_text(name) for name in classes]
            lines = [["name", *_list_headings(names), "class ACC"]]
            for record in records:
                summary = [record[key] for key in (*SUMMARY_COLUMNS, "class_acc")]
                name = spreadsheets.escape_text(record["name"])
                lines.append([name, *record["iou"].values(), *summary])
            spreadsheets.write_rows(file, lines)


def _list_headings(classes: Sequence[str]) -> list[str]:
    return [*classes, *SUMMARY_COLUMNS.values()]


def _format_scores(scores: Scores) -> list[str]:
    return [_format_score(x) for x in [*scores["iou"], *(scores[key] for key in SUMMARY_COLUMNS)]]


def _format_score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.5f}".removeprefix("0")


def _align(name: str, cells: Sequence[str], headings: Sequence[str], name_width: int) -> str:
    columns = zip(cells, headings, strict=True)
    return "  ".join(
        [name.ljust(name_width), *(cell.rjust(max(len(head), 7)) for cell, head in columns)]
    )


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
