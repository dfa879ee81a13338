"""The pages and tables of compared maps."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.files import atomic_path
from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.report.legend import Color, Legend
from wsss_jax.report.pages import make_data_url, write_page
from wsss_jax.slides.map_agreement import Comparison
from wsss_jax.spreadsheets import escape_text, write_rows

DIFFERENCE = "difference.png"
INDEX = "index.html"
AGREEMENT = "agreement.csv"
PAIRS = "pairs.csv"
SUMMARY = "comparison.json"
ALL = "all slides"
NO_CLASS = "no class"


class Overview(NamedTuple):
    """The slides of two workdirs.

    Attributes:
      titles: what the two are called.
      compared: the slides that both have.
      first_only, second_only: names of slides that one has.
      failures: name of a slide that was not compared -> why, in one line.
    """

    titles: tuple[str, str]
    compared: Sequence[Comparison]
    first_only: Sequence[str]
    second_only: Sequence[str]
    failures: Mapping[str, str]


def write_slide_page(
    folder: Path, comparison: Comparison, overlays: Sequence[np.ndarray], reports: Sequence[str]
) -> None:
    """Writes `report.html` of a slide, atomically.

    Args:
      folder: where to write; `difference.png` is there.
      comparison: of the slide.
      overlays: pictures of the first map and of the second, (h, w, 3) uint8 RGB.
      reports: paths of the reports of both maps from the folder.
    """
    pictures = [make_data_url("image/jpeg", slide_pictures.encode_jpeg(each)) for each in overlays]
    write_page(
        folder / slide_pages.REPORT,
        "comparison.html",
        _make_filters([comparison]),
        comparison=comparison,
        agreement=comparison.agreement,
        names=[*comparison.legend.names, NO_CLASS],
        counts=comparison.counts.tolist(),
        difference=DIFFERENCE,
        pictures=pictures,
        reports=reports,
    )


def write_overview(workdir: Path, overview: Overview) -> None:
    """Writes `index.html`, `agreement.csv`, `pairs.csv` and, last, `comparison.json`."""
    rows = list(overview.compared)
    if total := _add_up(rows):
        rows.append(total)
    colors = {
        name: color for each in rows for name, color in zip(each.legend.names, each.legend.palette)
    }
    write_page(
        workdir / INDEX,
        "comparisons.html",
        _make_filters(rows),
        overview=overview,
        rows=[(each, each.agreement, _find_dice(each)) for each in overview.compared],
        total=(total, total.agreement, _find_dice(total)) if total else None,
        colors=colors,
        files=[AGREEMENT, PAIRS, SUMMARY],
        report_file=slide_pages.REPORT,
    )
    headings = [
        *("slide", "class in both (pixels)", "class in both (mm2)", "same class (share of these)"),
        *("Cohen's kappa", "class in the first only (mm2)", "class in the second only (mm2)"),
        *(f"{measure} of {name}" for name in colors for measure in ("Dice", "IoU")),
    ]
    lines = [_list_measures(each, list(colors)) for each in rows]
    _write_csv(workdir / AGREEMENT, [headings, *lines])
    headings = ["slide", "class in the first", "class in the second", "pixels", "area (mm2)"]
    lines = [line for each in overview.compared for line in _list_pairs(each)]
    _write_csv(workdir / PAIRS, [headings, *lines])
    document = {
        "first": overview.titles[0],
        "second": overview.titles[1],
        "slides": {each.name: _describe(each) for each in overview.compared},
        "all": _describe(total) if total else None,
        "first_only": list(overview.first_only),
        "second_only": list(overview.second_only),
        "failed": dict(overview.failures),
    }
    with atomic_path(workdir / SUMMARY) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _add_up(compared: Sequence[Comparison]) -> Comparison | None:
    """Adds up the pixels of several slides; None of a single one, and of several resolutions."""
    if len(compared) < 2 or len({each.mpp for each in compared}) > 1:
        return None
    colors: dict[str, Color] = {}
    for each in compared:
        colors |= dict(zip(each.legend.names, each.legend.palette))
    names = list(colors)
    counts = np.zeros((len(names) + 1,) * 2, np.int64)
    for each in compared:
        places = [*map(names.index, each.legend.names), len(names)]
        counts[np.ix_(places, places)] += each.counts
    legend = Legend(names, [*colors.values(), compared[0].legend.palette[-1]])
    return Comparison(ALL, legend, compared[0].mpp, counts, ())


def _find_dice(comparison: Comparison) -> dict[str, float | None]:
    return {each.name: each.dice for each in comparison.agreement.classes}


def _list_measures(comparison: Comparison, names: Sequence[str]) -> list[Any]:
    agreement, mm2 = comparison.agreement, comparison.convert_to_mm2
    classes = {each.name: (each.dice, each.iou) for each in agreement.classes}
    return [
        *(comparison.name, agreement.both, mm2(agreement.both), agreement.share_equal),
        *(agreement.kappa, mm2(agreement.first_only), mm2(agreement.second_only)),
        *(value for name in names for value in classes.get(name, (None, None))),
    ]


def _list_pairs(comparison: Comparison) -> Iterator[list[Any]]:
    """Yields a line for each pair of classes that occurs."""
    names = [*comparison.legend.names, NO_CLASS]
    for first, row in zip(names, comparison.counts.tolist(), strict=True):
        for second, pixels in zip(names, row, strict=True):
            if pixels:
                yield [comparison.name, first, second, pixels, comparison.convert_to_mm2(pixels)]


def _describe(comparison: Comparison) -> dict[str, Any]:
    """Describes a comparison in JSON types."""
    agreement = comparison.agreement
    return {
        "mpp": comparison.mpp,
        "names": [*comparison.legend.names, NO_CLASS],
        "pixels": comparison.counts.tolist(),
        **agreement._asdict(),
        "classes": [each._asdict() for each in agreement.classes],
        "notes": list(comparison.notes),
    }


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Writes rows, numbers with six decimals, atomically."""

    def convert(cell: Any) -> Any:
        if isinstance(cell, str):
            return escape_text(cell)
        return f"{cell:.6f}" if isinstance(cell, float) else cell

    with (
        atomic_path(path) as temporary,
        # With a byte order mark, so that Excel reads names as UTF-8.
        temporary.open("w", encoding="utf-8-sig", newline="") as file,
    ):
        write_rows(file, [list(map(convert, row)) for row in rows])


def _make_filters(compared: Sequence[Comparison]) -> dict[str, Callable[..., str]]:
    """Makes the filters of a page: shares, scores, and pixels as areas."""
    decimals = slide_pages.choose_decimals(
        each.convert_to_mm2(int(each.counts.sum())) for each in compared
    )

    def format_area(pixels: int, comparison: Comparison) -> str:
        return slide_pages.format_mm2(comparison.convert_to_mm2(pixels), decimals)

    return {"share": slide_pages.format_share, "area": format_area, "score": _format_score}


def _format_score(value: float | None) -> str:
    return slide_pages.UNDEFINED if value is None else f"{value:.3f}"
