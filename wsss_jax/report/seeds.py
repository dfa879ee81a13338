"""The table of several seeds: text, CSV, JSON and a figure."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax import statistics
from wsss_jax.files import atomic_path
from wsss_jax.report import figures, tables
from wsss_jax.spreadsheets import escape_text, write_rows
from wsss_jax.statistics import Bootstrap, Difference
from wsss_jax.wording import format_count

TEXT, CSV, JSON, FIGURE = "scores.txt", "scores.csv", "scores.json", "seeds.png"
_TITLES = {
    "mean": "mean over the seeds",
    "sd": "standard deviation over the seeds (n - 1)",
    "seed": "each seed",
}
_COLUMNS = (*tables.SUMMARY_COLUMNS.values(), "class ACC")


class Comparison(NamedTuple):
    """A row of a variant beside the same row of the baseline."""

    variant: str
    baseline: str
    row: str
    difference: Difference


class Missing(NamedTuple):
    """A seed without scores, why, and which step failed; "" = none has, yet."""

    variant: str
    seed: int
    step: str
    problem: str


class Results(NamedTuple):
    """What several seeds of one or more variants scored.

    Attributes:
      classes: C names.
      patches: how many were scored.
      units: what was resampled, such as "21 regions".
      bootstrap: how.
      scores: variant -> row of the evaluation -> seed -> vector (C + 4,); see `statistics`.
      differences: of the other variants from the first.
      missing: seeds that are not in `scores`.
      notice: what a reader of the table should know; "" = nothing.
    """

    classes: Sequence[str]
    patches: int
    units: str
    bootstrap: Bootstrap
    scores: Mapping[str, Mapping[str, Mapping[int, np.ndarray]]]
    differences: Sequence[Comparison]
    missing: Sequence[Missing]
    notice: str = ""


class _Line(NamedTuple):
    """A line of the table: `statistic` is "seed", "mean", "sd", "difference", "low" or "high"."""

    variant: str
    row: str
    statistic: str
    seeds: tuple[int, ...]
    scores: np.ndarray
    baseline: str = ""


def describe_units(units: np.ndarray, regions: int) -> str:
    """Says what is resampled.

    Args:
      units: (N,) unit of each patch.
      regions: how many units are regions; the others are patches without one.
    """
    patches = int(units.max()) + 1 - regions
    texts = [format_count(regions, "region")] if regions else []
    if patches:
        texts.append(f"{patches:,} {'patch' if patches == 1 else 'patches'}")
    return " and ".join(texts)


def write(workdir: Path, results: Results) -> None:
    """Writes `scores.txt`, `.csv` and `.json`, and `seeds.png`."""
    with atomic_path(workdir / TEXT) as path:
        path.write_text(format_text(results) + "\n", encoding="utf-8")
    headings = ["variant", "row", "statistic", "seeds", "baseline"]
    lines: list[list[Any]] = [[*headings, *map(escape_text, results.classes), *_COLUMNS]]
    for line in _list_lines(results):
        texts = [line.variant, line.row, line.statistic, _join(line.seeds), line.baseline]
        lines.append([*map(escape_text, texts), *map(_to_json, line.scores.tolist())])
    with atomic_path(workdir / CSV) as path, path.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, lines)
    with atomic_path(workdir / JSON) as path:
        text = json.dumps(_describe(results), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    panels = {}
    for name, title in tables.SUMMARY_COLUMNS.items():
        index = len(results.classes) + statistics.SUMMARY.index(name)
        panels[title] = {
            variant: {
                row: [float(vector[index]) for vector in by_seed.values()]
                for row, by_seed in rows.items()
            }
            for variant, rows in results.scores.items()
        }
    figures.write_seed_points(workdir / FIGURE, panels)


def format_text(results: Results) -> str:
    """Formats the table for a terminal: means, deviations, each seed, differences."""
    lines = list(_list_lines(results))
    parts = []
    for statistic, title in _TITLES.items():
        rows = [
            (f"{line.variant}: {line.row} [{_join(line.seeds)}]", line.scores)
            for line in lines
            if line.statistic == statistic and not line.baseline
        ]
        parts.append(_format_part(f"{title} [seeds]", rows, results.classes))
    for variant, baseline in dict.fromkeys((c.variant, c.baseline) for c in results.differences):
        rows = [
            (
                f"{line.row} [{_join(line.seeds)}]"
                if line.statistic == "difference"
                else f"  {line.statistic}",
                line.scores,
            )
            for line in lines
            if (line.variant, line.baseline) == (variant, baseline)
        ]
        title = (
            f"{variant} - {baseline} [seeds of both], with the bootstrap interval of "
            f"{100 * results.bootstrap.confidence:g} % over {results.units} (low, high) and the "
            "standard deviation over the seeds (sd)"
        )
        parts.append(_format_part(title, rows, results.classes))
    for variant, seed, step, problem in results.missing:
        why = f"{step} failed: {problem}" if step else problem
        parts.append(f"not in the table: {variant}, seed {seed}: {why}")
    if results.notice:
        parts.append(results.notice)
    return "\n\n".join(parts)


def _format_part(title: str, rows: Sequence[tuple[str, np.ndarray]], classes: Sequence[str]) -> str:
    named = [(name, statistics.name_scores(vector)) for name, vector in rows]
    return f"{title}\n{tables.format_table(named, classes)}"


def _list_lines(results: Results) -> Iterator[_Line]:
    """Yields the lines of the table: of each variant and row, then of the differences."""
    for variant, rows in results.scores.items():
        for row, by_seed in rows.items():
            seeds, values = tuple(by_seed), np.stack(list(by_seed.values()))
            yield _Line(variant, row, "mean", seeds, statistics.mean(values))
            yield _Line(variant, row, "sd", seeds, statistics.standard_deviation(values))
            for seed, vector in by_seed.items():
                yield _Line(variant, row, "seed", (seed,), vector)
    for variant, baseline, row, (seeds, mean, deviation, low, high) in results.differences:
        for statistic, vector in (
            ("difference", mean),
            ("low", low),
            ("high", high),
            ("sd", deviation),
        ):
            yield _Line(variant, row, statistic, seeds, vector, baseline)


def _describe(results: Results) -> dict[str, Any]:
    """Returns the content of the JSON file; an undefined score is null."""
    lines = []
    for line in _list_lines(results):
        iou, summary = np.split(line.scores, [len(results.classes)])
        scores: dict[str, Any] = {"iou": dict(zip(results.classes, map(_to_json, iou.tolist())))}
        scores |= dict(zip(statistics.SUMMARY, map(_to_json, summary.tolist())))
        texts = {"variant": line.variant, "baseline": line.baseline, "row": line.row}
        lines.append({**texts, "statistic": line.statistic, "seeds": list(line.seeds), **scores})
    return {
        "meta": {
            "patches": results.patches,
            "resampled": results.units,
            "bootstrap": results.bootstrap._asdict(),
        },
        "classes": list(results.classes),
        "rows": lines,
        "missing": [missing._asdict() for missing in results.missing],
    }


def _join(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else value
