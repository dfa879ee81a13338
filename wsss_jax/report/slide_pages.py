"""The report of a slide as an HTML page, and how pages of slides write numbers."""

import itertools
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


class Certainty(NamedTuple):
    """How certain a map is.

    Attributes:
      threshold: highest class probability under which a pixel counts as uncertain; None: not known.
      share: of the area of all classes that is under it, 0..1; None where there is none.
      classes: class -> the same share of its area.
      note: why it is not known, and how to get it; "" if it is known.
    """

    threshold: float | None = None
    share: float | None = None
    classes: Mapping[str, float | None] = {}
    note: str = ""


class PlaceView(NamedTuple):
    """A place of the slide that deserves a look.

    Attributes:
      heading, explanation: of its kind.
      text: what is there.
      picture: the place at the resolution of the map.
      at: where it is, as shares of the slide's width and height.
      link: its address in the viewer, relative to the report.
    """

    heading: str
    explanation: str
    text: str
    picture: SlidePictures
    at: tuple[float, float]
    link: str


class SlideReport(NamedTuple):
    """What a report shows.

    Attributes:
      name: of the slide.
      pictures: of the slide and its map.
      areas, ratios: in the order to list them.
      facts: how the map was made: heading -> label -> text.
      warnings: one sentence each.
      files: name, relative to the report -> what the file holds.
      places: that deserve a look, those of a kind together.
      certainty: how certain the map is.
    """

    name: str
    pictures: SlidePictures
    areas: Sequence[Area]
    ratios: Sequence[Ratio]
    facts: Mapping[str, Mapping[str, str]]
    warnings: Sequence[str]
    files: Mapping[str, str]
    places: Sequence[PlaceView] = ()
    certainty: Certainty = Certainty()


def write_report(path: Path | str, report: SlideReport) -> None:
    """Writes the report of a slide as HTML, atomically; parents are created."""
    decimals = choose_decimals(area.mm2 for area in report.areas)
    viewer = _make_viewer(report)
    cards = [_make_card(number, place) for number, place in enumerate(report.places)]
    write_page(
        path,
        "report.html",
        FILTERS,
        report=report,
        viewer=viewer,
        decimals=decimals,
        cards=cards,
        kinds=[list(group) for _, group in itertools.groupby(cards, lambda card: card["heading"])],
    )


def _make_card(number: int, place: PlaceView) -> dict[str, Any]:
    """Makes what the report shows of a place; its letter is also on the map."""
    left, top = (min(max(at, 0.0), 1.0) for at in place.at)
    height, width = place.picture.labels.shape
    return {
        **place._asdict(),
        "letter": _make_letter(number),
        "left": 100 * left,
        "top": 100 * top,
        "width": width,
        "height": height,
        "span": slide_pictures.format_length(width * place.picture.um_per_pixel),
        "picture": make_data_url("image/jpeg", slide_pictures.encode_thumbnail(place.picture)),
        "outlines": make_data_url("image/png", slide_pictures.encode_outlines(place.picture)),
    }


def _make_letter(number: int) -> str:
    """Names places A, B, ..., Z, AA, AB, ... as spreadsheets do columns."""
    first, last = divmod(number, 26)
    return (_make_letter(first - 1) if first else "") + chr(ord("A") + last)


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


FILTERS = {"share": format_share, "mm2": format_mm2}
