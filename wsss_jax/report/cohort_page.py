"""The page of a cohort: all its slides, how they are distributed, and which need a look."""

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.report.legend import Color
from wsss_jax.report.pages import make_link, write_page
from wsss_jax.report.slide_pages import Area, Ratio, format_mm2, format_share
from wsss_jax.report.strips import HEIGHT, RADIUS, Strip, Value, make_strip

_FEWEST_POINTS = 2  # slides from which distributions are drawn


class Reason(NamedTuple):
    """Why a slide needs a look.

    Attributes:
      kind: in a word or two.
      text: in a sentence.
      measure: title of what it is an outlier of; else "".
    """

    kind: str
    text: str
    measure: str = ""


class IndexEntry(NamedTuple):
    """A slide of the cohort: failed if it has an error, else finished if it has a folder.

    Attributes:
      name: of the slide.
      folder: with its `report.html` and `small.jpg`, relative to the index.
      tissue_mm2: area of its tissue.
      areas, ratios: as in its report.
      uncertain: share of its area with a low class probability, 0..1; None: not known.
      reasons: why it needs a look.
      error: one line.
      preview: picture of a map that is being made, relative to the index; it may not be there yet.
    """

    name: str
    folder: str | None = None
    tissue_mm2: float = 0.0
    areas: Sequence[Area] = ()
    ratios: Sequence[Ratio] = ()
    uncertain: float | None = None
    reasons: Sequence[Reason] = ()
    error: str | None = None
    preview: str | None = None


class Index(NamedTuple):
    """What the page of a cohort shows.

    Attributes:
      entries: the slides in the order to list them.
      warnings: that all finished slides have.
      notes: how slides were compared, one sentence each.
      tables: files for spreadsheets, relative to the page -> what they hold.
    """

    entries: Sequence[IndexEntry]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Mapping[str, str] = {}


class _Row(NamedTuple):
    """A finished slide; `areas` and `ratios` by name."""

    entry: IndexEntry
    areas: Mapping[str, Area]
    ratios: Mapping[str, float | None]
    link: str


class _Measure(NamedTuple):
    """What a strip shows: a value for each row, how to write it, and the value at the right end."""

    title: str
    color: Color | None
    values: Sequence[float | None]
    form: Callable[[float], str] = format_share
    largest: float = 1.0


def write_index(path: Path | str, index: Index) -> None:
    """Writes the page of a cohort, atomically; parents are created.

    Slides that failed are among those that need a look. Pictures and reports are linked relative to
    the page.
    """
    rows = [
        _Row(
            entry,
            {area.name: area for area in entry.areas if area.color is not None},
            {ratio.name: ratio.value for ratio in entry.ratios},
            make_link(f"{entry.folder}/{slide_pages.REPORT}"),
        )
        for entry in index.entries
        if entry.error is None and entry.folder is not None
    ]
    classes = {name: area.color for row in rows for name, area in row.areas.items()}
    ratios = list(dict.fromkeys(name for row in rows for name in row.ratios))
    write_page(
        path,
        "index.html",
        slide_pages.FILTERS,
        index=index,
        failed=[entry for entry in index.entries if entry.error is not None],
        finished=rows,
        noted=[row for row in rows if row.entry.reasons],
        remaining=[e for e in index.entries if e.error is None and e.folder is None],
        classes=classes,
        ratio_names=ratios,
        shows_uncertain=any(row.entry.uncertain is not None for row in rows),
        decimals=slide_pages.choose_decimals(a.mm2 for row in rows for a in row.areas.values()),
        strips=_make_strips(rows, classes, ratios) if len(rows) >= _FEWEST_POINTS else [],
        strip_height=HEIGHT,
        radius=RADIUS,
        picture_file=slide_pictures.SMALL,
    )


def _make_strips(
    rows: Sequence[_Row], classes: Mapping[str, Color | None], ratios: Collection[str]
) -> list[Strip]:
    """Makes a strip for the area of tissue, each class, each ratio, and the uncertain area."""
    tissue = [row.entry.tissue_mm2 for row in rows]
    largest = max(tissue)
    decimals = slide_pages.choose_decimals(tissue)
    measures: list[_Measure] = [
        _Measure("Tissue", None, tissue, lambda mm2: f"{format_mm2(mm2, decimals)} mm²", largest),
        *(
            _Measure(name, color, [_get_share(row, name) for row in rows])
            for name, color in classes.items()
        ),
        *(_Measure(name, None, [row.ratios.get(name) for row in rows]) for name in ratios),
        _Measure("Uncertain area", None, [row.entry.uncertain for row in rows]),
    ]
    return [
        _make_strip(rows, measure)
        for measure in measures
        if len(rows) - measure.values.count(None) >= _FEWEST_POINTS and measure.largest > 0
    ]


def _get_share(row: _Row, name: str) -> float | None:
    return row.areas[name].share_of_tissue if name in row.areas else None


def _make_strip(rows: Sequence[_Row], measure: _Measure) -> Strip:
    values = [
        Value(
            row.entry.name,
            row.link,
            value,
            measure.form(value),
            any(reason.measure == measure.title for reason in row.entry.reasons),
        )
        for row, value in zip(rows, measure.values, strict=True)
        if value is not None
    ]
    median = measure.form(statistics.median(each.value for each in values))
    texts = "0", f"median {median}", measure.form(measure.largest)
    return make_strip(measure.title, measure.color, values, measure.largest, texts)
