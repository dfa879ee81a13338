"""HTML pages of tissue maps: a report for each slide and an index of all slides."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss_jax.report import slide_pictures
from wsss_jax.report.legend import Color
from wsss_jax.report.pages import make_data_url, write_page
from wsss_jax.report.slide_pictures import SlidePictures

REPORT = "report.html"
UNDEFINED = "n/a"
MM2_DIGITS = 4  # significant digits of the largest area in a table


class Area(NamedTuple):
    """A row of the table of areas.

    Attributes:
      name: of the class, or of what belongs to no class.
      color: None for what belongs to no class.
      pixels: of the map.
      mm2: square millimeters.
      share_of_tissue, share_of_slide: 0..1, None where undefined.
    """

    name: str
    color: Color | None
    pixels: int
    mm2: float
    share_of_tissue: float | None
    share_of_slide: float | None


class Ratio(NamedTuple):
    """A ratio of areas.

    Attributes:
      name: what it is.
      value: 0..1, or None for 0 / 0.
      definition: how it is computed, and what it does not measure.
    """

    name: str
    value: float | None
    definition: str


class SlideReport(NamedTuple):
    """What a report shows.

    Attributes:
      name: of the slide.
      pictures: of the slide and its map.
      areas, ratios: in the order to list them.
      facts: how the map was made: heading -> label -> text.
      warnings: one sentence each.
      files: name, relative to the report -> what the file holds.
    """

    name: str
    pictures: SlidePictures
    areas: Sequence[Area]
    ratios: Sequence[Ratio]
    facts: Mapping[str, Mapping[str, str]]
    warnings: Sequence[str]
    files: Mapping[str, str]


class IndexEntry(NamedTuple):
    """A slide of the cohort: failed if it has an error, else finished if it has a folder.

    Attributes:
      name: of the slide.
      folder: with its `report.html` and `small.jpg`, relative to the index.
      areas, ratios, warnings: as in its report.
      error: one line.
    """

    name: str
    folder: str | None = None
    areas: Sequence[Area] = ()
    ratios: Sequence[Ratio] = ()
    warnings: Sequence[str] = ()
    error: str | None = None


class _Row(NamedTuple):
    """A finished slide in the table of the index; `areas` and `ratios` by name."""

    entry: IndexEntry
    areas: Mapping[str, Area]
    ratios: Mapping[str, float | None]


def write_report(path: Path | str, report: SlideReport) -> None:
    """Writes the report of a slide as HTML, atomically; parents are created."""
    decimals = choose_decimals(area.mm2 for area in report.areas)
    viewer = _make_viewer(report)
    write_page(path, "report.html", _FILTERS, report=report, viewer=viewer, decimals=decimals)


def write_index(path: Path | str, entries: Sequence[IndexEntry]) -> None:
    """Writes the page of a cohort, atomically: failed slides, then finished, then remaining ones.

    Args:
      path: of the HTML file; parents are created. Pictures and reports are linked relative to it.
      entries: in the order to list them.
    """
    rows = [
        _Row(
            entry,
            {area.name: area for area in entry.areas if area.color is not None},
            {ratio.name: ratio.value for ratio in entry.ratios},
        )
        for entry in entries
        if entry.error is None and entry.folder is not None
    ]
    write_page(
        path,
        "index.html",
        _FILTERS,
        number=len(entries),
        failed=[entry for entry in entries if entry.error is not None],
        finished=rows,
        remaining=[entry for entry in entries if entry.error is None and entry.folder is None],
        classes={name: area.color for row in rows for name, area in row.areas.items()},
        ratio_names=list(dict.fromkeys(name for row in rows for name in row.ratios)),
        decimals=choose_decimals(area.mm2 for row in rows for area in row.areas.values()),
        report_file=REPORT,
        picture_file=slide_pictures.SMALL,
    )


def _make_viewer(report: SlideReport) -> dict[str, Any]:
    """Makes the pictures of a report, and what is written on and beside them."""
    pictures = report.pictures
    height, width = pictures.labels.shape
    length_um, bar_text = slide_pictures.choose_scale_bar(width * pictures.um_per_pixel)
    shares = (
        f"{area.name} {format_share(area.share_of_tissue)}"
        for area in report.areas
        if area.color is not None
    )
    return {
        "width": width,
        "height": height,
        "entries": pictures.legend.list_entries(),
        "thumbnail": make_data_url("image/jpeg", slide_pictures.encode_thumbnail(pictures)),
        "tissue_map": make_data_url("image/png", slide_pictures.encode_map(pictures)),
        "outlines": make_data_url("image/png", slide_pictures.encode_outlines(pictures)),
        "places": slide_pictures.place_numbers(pictures),
        "shares": ", ".join(shares),
        "bar_text": bar_text,
        "bar_percent": 100 * length_um / pictures.um_per_pixel / width,
    }


def format_share(value: float | None) -> str:
    """Writes a share of 0..1 as a percentage with one decimal, "0.0 %" and "100.0 %" only if exact.

    A share that would be rounded to one of these reads "< 0.1 %" or "> 99.9 %".
    """
    if value is None:
        return UNDEFINED
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.1f} %"


def format_mm2(value: float, decimals: int) -> str:
    """Writes an area with `decimals` digits; one that would be rounded to 0 reads "< 0.01"."""
    least = 10.0**-decimals
    return f"< {least:.{decimals}f}" if 0 < value < least / 2 else f"{value:,.{decimals}f}"


def choose_decimals(areas: Iterable[float]) -> int:
    """Chooses decimals that give the largest area `MM2_DIGITS` digits, so that all line up."""
    largest = max(areas, default=0.0)
    return max(0, MM2_DIGITS - 1 - math.floor(math.log10(largest))) if largest > 0 else 0


_FILTERS = {"share": format_share, "mm2": format_mm2}
