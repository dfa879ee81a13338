"""HTML pages of tissue maps: a report for each slide and an index of all slides.

No page needs a script or the network. Pages are built as element trees, which escape every text
when they are written: names of slides may hold anything.
"""

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from xml.etree.ElementTree import Element, tostring

from wsss_jax.files import atomic_path
from wsss_jax.report import numbers, slide_pictures
from wsss_jax.report.canvas import Color
from wsss_jax.report.slide_pictures import SlidePictures
from wsss_jax.wording import counted

REPORT = "report.html"

RESEARCH_ONLY = "For research use only. Not for diagnosis."
UNDEFINED = "n/a"
MM2_DIGITS = 4  # significant ones of the largest area of a table
VIEWS = ("Overlay", "Outlines", "Tissue", "Map", "Side by side")


class Area(NamedTuple):
    """A line of the table of areas.

    `pixels` are working pixels; the shares are in [0, 1], None where undefined. `color` is None for
    what is no class (background), which the pictures do not show.
    """

    name: str
    color: Color | None
    pixels: int
    mm2: float
    share_of_tissue: float | None
    share_of_slide: float | None


class Ratio(NamedTuple):
    """A ratio of areas: `value` in [0, 1] or None for 0 / 0; `definition` says what it is not."""

    name: str
    value: float | None
    definition: str


class SlideReport(NamedTuple):
    """What a report shows.

    `facts` is heading -> label -> value, how the map was made; `files` is file name, relative to
    the report -> what it holds.
    """

    name: str
    pictures: SlidePictures
    areas: Sequence[Area]
    ratios: Sequence[Ratio]
    facts: Mapping[str, Mapping[str, str]]
    warnings: Sequence[str]
    files: Mapping[str, str]


class IndexEntry(NamedTuple):
    """A slide of the cohort: finished if it has a folder, failed if it has an error.

    `folder`, relative to the index, holds `report.html` and `small.jpg`; `error` is one line. A
    slide with neither remains to be done.
    """

    name: str
    folder: str | None = None
    areas: Sequence[Area] = ()
    ratios: Sequence[Ratio] = ()
    warnings: Sequence[str] = ()
    error: str | None = None


def write_report(path: Path | str, report: SlideReport) -> None:
    """Write the report of a slide as one HTML file that needs no other, atomically.

    Args:
        path: of the file; parents are created.
        report: what it shows.
    """
    sections = [
        _warnings(report.warnings),
        _viewer(report.pictures, report.areas),
        _section("Areas", _scrolled("areas", "Areas", _area_table(report.areas))),
        _section("Ratios", _ratios(report.ratios)) if report.ratios else "",
        _section("How it was made", _facts(report.facts)),
        _section("Files", _file_list(report.files)) if report.files else "",
    ]
    _write_page(path, f"{report.name} - tissue map", "Tissue map", report.name, sections)


def write_index(path: Path | str, entries: Sequence[IndexEntry]) -> None:
    """Write the page of a cohort atomically: failed slides, then finished, then remaining ones.

    The pictures and reports are those of the entries' folders, linked relative to `path`.

    Args:
        path: of the file; parents are created.
        entries: in the order to list them.
    """
    failed = [entry for entry in entries if entry.error is not None]
    finished = [entry for entry in entries if entry.error is None and entry.folder is not None]
    remaining = [entry for entry in entries if entry.error is None and entry.folder is None]
    counts = ((finished, "finished"), (failed, "failed"), (remaining, "remaining"))
    summary = _element(
        "p",
        *(
            _element("span", _element("b", f"{len(group):,}"), f" {state}")
            for group, state in counts
        ),
        class_="counts",
    )
    sections = [
        summary,
        _section("Failed", _failure_table(failed), class_="failed") if failed else "",
        _section("Finished", _scrolled("slides", "Finished slides", _slide_table(finished)))
        if finished
        else "",
        _section("Remaining", _list((entry.name for entry in remaining), class_="remaining"))
        if remaining
        else "",
    ]
    number = counted(len(entries), "slide")
    _write_page(path, f"Tissue maps of {number}", "Tissue maps", number, sections)


def _warnings(warnings: Sequence[str]) -> Element | str:
    if not warnings:
        return ""
    return _section("Warnings", _list(warnings), class_="warnings")


def _viewer(pictures: SlidePictures, areas: Sequence[Area]) -> Element:
    """Thumbnail, map and outlines on top of each other; radio buttons choose what is seen.

    The two pictures lie side by side on paper, and on the screen for those who ask.
    """
    height, width = pictures.labels.shape
    length_um, text = slide_pictures.scale_bar(width * pictures.um_per_pixel)
    bar = _element(
        "p",
        text,
        _element("i", style=f"width: {100 * length_um / pictures.um_per_pixel / width:.4f}%"),
        class_="scale",
    )
    shares = ", ".join(
        f"{area.name} {_share(area.share_of_tissue)}" for area in areas if area.color is not None
    )
    thumbnail = _data_uri("image/jpeg", slide_pictures.thumbnail_jpeg(pictures))
    tissue_map = _data_uri("image/png", slide_pictures.map_png(pictures))
    outlines = _data_uri("image/png", slide_pictures.outlines_png(pictures))
    switches = []
    for number, view in enumerate(VIEWS):
        chosen = {"checked": "checked"} if number == 0 else {}
        identity = _identity(view)
        switches += [
            _element("input", type="radio", name="view", id=identity, **chosen),
            _element("label", view, for_=identity),
        ]
    return _element(
        "fieldset",
        _element("legend", "View"),
        *switches,
        _element(
            "ul",
            *(
                _element("li", _swatch(color), name)
                for name, color in zip(
                    numbers.legend(pictures.classes), pictures.palette[:-1], strict=True
                )
            ),
            class_="legend",
        ),
        _element(
            "div",
            _element("div", _image(thumbnail, "The slide", width, height), bar, class_="tissue"),
            _element(
                "div",
                _image(tissue_map, f"Map of its classes: {shares}", width, height, class_="fill"),
                _image(outlines, "", width, height, class_="lines"),
                *(
                    _element(
                        "b",
                        str(place.value),
                        style=f"left: {100 * (place.x + 0.5) / width:.3f}%; "
                        f"top: {100 * (place.y + 0.5) / height:.3f}%",
                        aria_hidden="true",
                    )
                    for place in slide_pictures.number_places(pictures)
                ),
                class_="map",
            ),
            class_="panes",
            style=f"--width: {width}px; --aspect: {width / height:.4f}",
        ),
        class_="viewer",
    )


def _area_table(areas: Sequence[Area]) -> Element:
    decimals = _mm2_decimals(areas)
    headings = ("Class", "Pixels", "mm²", "Share of tissue", "Share of slide")
    head = _element(
        "tr",
        _element("th", headings[0], scope="col"),
        _element("td", class_="bar"),
        *(_element("th", heading, scope="col", class_="number") for heading in headings[1:]),
    )
    rows = []
    for area in areas:
        is_class = area.color is not None
        numbers = (
            f"{area.pixels:,}",
            _mm2(area.mm2, decimals),
            _share(area.share_of_tissue),
            _share(area.share_of_slide),
        )
        rows.append(
            _element(
                "tr",
                _element("th", _swatch(area.color) if is_class else "", area.name, scope="row"),
                _element("td", _bar([area]) if is_class else "", class_="bar"),
                *(_element("td", number, class_="number") for number in numbers),
                **({} if is_class else {"class": "no-class"}),
            )
        )
    return _table(head, rows)


def _ratios(ratios: Sequence[Ratio]) -> Element:
    boxes = (
        _element(
            "div",
            _element("dt", ratio.name),
            _element("dd", _share(ratio.value), class_="value"),
            _element("dd", ratio.definition),
        )
        for ratio in ratios
    )
    return _element("dl", *boxes, class_="ratios")


def _facts(facts: Mapping[str, Mapping[str, str]]) -> Element:
    groups = (
        _element(
            "table",
            _element("caption", heading),
            _element(
                "tbody",
                *(
                    _element("tr", _element("th", label, scope="row"), _element("td", value))
                    for label, value in values.items()
                ),
            ),
        )
        for heading, values in facts.items()
    )
    return _element("div", *groups, class_="facts")


def _file_list(files: Mapping[str, str]) -> Element:
    items = (
        _element("li", _element("a", name, href=_address(name)), _element("span", what))
        for name, what in files.items()
    )
    return _element("ul", *items, class_="files")


def _failure_table(entries: Sequence[IndexEntry]) -> Element:
    head = _element(
        "tr", _element("th", "Slide", scope="col"), _element("th", "Error", scope="col")
    )
    rows = [
        _element("tr", _element("th", entry.name, scope="row"), _element("td", entry.error))
        for entry in entries
    ]
    return _table(head, rows)


def _slide_table(entries: Sequence[IndexEntry]) -> Element:
    areas = [
        {area.name: area for area in entry.areas if area.color is not None} for entry in entries
    ]
    ratios = [{ratio.name: ratio for ratio in entry.ratios} for entry in entries]
    classes = {name: area.color for of_slide in areas for name, area in of_slide.items()}
    ratio_names = dict.fromkeys(name for of_slide in ratios for name in of_slide)
    decimals = _mm2_decimals(area for of_slide in areas for area in of_slide.values())
    head = _element(
        "tr",
        _element("th", "Slide", scope="col"),
        _element("th", "Share of tissue", scope="col"),
        *(
            _element("th", _swatch(color), name, scope="col", class_="number")
            for name, color in classes.items()
        ),
        *(_element("th", name, scope="col", class_="number") for name in ratio_names),
    )
    rows = []
    for entry, of_slide, its_ratios in zip(entries, areas, ratios, strict=True):
        cells = []
        for name in classes:
            area = of_slide.get(name)
            share, mm2 = (
                (UNDEFINED, UNDEFINED)
                if area is None
                else (_share(area.share_of_tissue), f"{_mm2(area.mm2, decimals)} mm²")
            )
            cells.append(_element("td", share, _element("small", mm2), class_="number"))
        for name in ratio_names:
            value = its_ratios[name].value if name in its_ratios else None
            cells.append(_element("td", _share(value), class_="number"))
        rows.append(
            _element(
                "tr",
                _slide_cell(entry),
                _element("td", _bar(of_slide.values()), class_="bar"),
                *cells,
            )
        )
    return _table(head, rows)


def _slide_cell(entry: IndexEntry) -> Element:
    picture = _element(
        "img",
        src=_address(f"{entry.folder}/{slide_pictures.SMALL}"),
        alt="",  # the name beside it says what it is
        loading="lazy",
    )
    name = _element("span", entry.name)
    if entry.warnings:
        name.append(_element("small", counted(len(entry.warnings), "warning"), class_="note"))
    link = _element("a", picture, name, href=_address(f"{entry.folder}/{REPORT}"))
    return _element("th", link, scope="row")


def _bar(areas: Iterable[Area]) -> Element:
    """Shares of the tissue as lengths; the numbers beside it say the same."""
    pieces = (
        _element("i", style=f"width: {100 * area.share_of_tissue:.3f}%; {_background(area.color)}")
        for area in areas
        if area.share_of_tissue
    )
    return _element("div", *pieces, class_="shares", aria_hidden="true")


def _swatch(color: Color) -> Element:
    return _element("i", class_="swatch", style=_background(color))


def _background(color: Color) -> str:
    red, green, blue = color
    return f"background: rgb({red}, {green}, {blue})"


def _image(source: str, alt: str, width: int, height: int, **attributes: str) -> Element:
    return _element("img", src=source, alt=alt, width=str(width), height=str(height), **attributes)


def _section(heading: str, *children: Element | str, **attributes: str) -> Element:
    return _element("section", _element("h2", heading), *children, **attributes)


def _table(head: Element, rows: Iterable[Element]) -> Element:
    return _element("table", _element("thead", head), _element("tbody", *rows))


def _scrolled(kind: str, label: str, table: Element) -> Element:
    """On a narrow screen the table scrolls, also by the keyboard, and the page does not."""
    return _element(
        "div", table, class_=f"wide {kind}", role="region", tabindex="0", aria_label=label
    )


def _list(items: Iterable[str], **attributes: str) -> Element:
    return _element("ul", *(_element("li", item) for item in items), **attributes)


def _mm2_decimals(areas: Iterable[Area]) -> int:
    """Decimals that give the largest area `MM2_DIGITS` digits, so that all line up."""
    largest = max((area.mm2 for area in areas), default=0)
    return max(0, MM2_DIGITS - 1 - math.floor(math.log10(largest))) if largest > 0 else 0


def _mm2(value: float, decimals: int) -> str:
    least = 10.0**-decimals
    return f"< {least:.{decimals}f}" if 0 < value < least / 2 else f"{value:,.{decimals}f}"


def _share(value: float | None) -> str:
    """As a percentage of one decimal that is 0 or 100 only if the share is."""
    if value is None:
        return UNDEFINED
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.1f} %"


def _identity(view: str) -> str:
    return "view-" + view.lower().replace(" ", "-")


def _address(path: str) -> str:
    """A relative path as an address; "./" keeps a colon in it from being read as a scheme."""
    return "./" + quote(os.fsencode(path))


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _element(tag: str, *children: Element | str, **attributes: str) -> Element:
    """An element; in the names of attributes "_" stands for "-" and may follow a keyword."""
    element = Element(
        tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    )
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    return element


def _write_page(
    path: Path | str, title: str, kind: str, heading: str, sections: Sequence[Element | str]
) -> None:
    head = _element(
        "head",
        _element("meta", charset="utf-8"),
        _element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _element("meta", name="color-scheme", content="light dark"),
        _element("title", title),
        _element("style", STYLE),
    )
    header = _element(
        "header",
        _element("p", kind, class_="kind"),
        _element("h1", heading),
        _element("p", RESEARCH_ONLY, class_="research"),
    )
    body = _element("body", _element("main", header, *sections))
    page = tostring(_element("html", head, body, lang="en"), encoding="unicode", method="html")
    with atomic_path(path) as temporary:
        # File names that are no text in the system's encoding hold surrogates.
        temporary.write_text(f"<!doctype html>\n{page}\n", "utf-8", errors="backslashreplace")


STYLE = """
:root {
  --page: #fff; --ink: #222; --pale: #666; --line: #ddd; --track: #f0f0f0;
  --link: #0b5cad; --warning: #8a5a00; --warning-page: #fff8e8; --error: #b3261e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #17191c; --ink: #e8e8e8; --pale: #a8abb0; --line: #383b40; --track: #25282c;
    --link: #8ab8ee; --warning: #f0c36a; --warning-page: #2a2416; --error: #f2a29b;
  }
}
* { box-sizing: border-box; }
html { font-size: 93.75%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main { max-width: 1168px; margin: 0 auto; padding: 40px 24px 64px; }
a { color: var(--link); }
small { color: var(--pale); font-size: .8rem; font-weight: normal; }
header { border-bottom: 1px solid var(--line); padding-bottom: 16px; margin-bottom: 28px; }
h1, h2, h3, p, dl, dd, ul { margin: 0; padding: 0; }
h1 { font-size: 1.87rem; line-height: 1.25; font-weight: 600; overflow-wrap: anywhere; }
h2 { font-size: 1.13rem; font-weight: 600; margin-bottom: 12px; }
.kind { color: var(--pale); }
.research { margin-top: 6px; font-weight: 600; }
section { margin-top: 40px; }
ul { list-style: none; }
.swatch {
  display: inline-block; width: 13px; height: 13px; margin-right: 8px; vertical-align: -1px;
  box-shadow: inset 0 0 0 1px #0004;
}
.swatch, .shares i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }

table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 0 8px 24px; text-align: left; vertical-align: top; }
tr > :first-child { padding-left: 0; }
th { font-weight: normal; overflow-wrap: break-word; }
thead th { color: var(--pale); font-size: .87rem; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
.shares { display: flex; height: 12px; background: var(--track); }
.shares i { box-shadow: inset 0 0 0 1px #0002; }
.areas .bar { width: 30%; vertical-align: middle; }
.areas tbody th { padding-left: 21px; }
.areas tbody .swatch { margin-left: -21px; }
.areas .no-class { color: var(--pale); }
.wide { overflow-x: auto; }

.warnings, .failed { border-left: 4px solid var(--warning); padding: 12px 16px; }
.warnings { background: var(--warning-page); margin: 0 0 28px; }
.failed { margin-top: 24px; }
.warnings h2 { color: var(--warning); margin-bottom: 4px; }
.warnings li { overflow-wrap: anywhere; }
.warnings li + li { margin-top: 4px; }
.failed { border-color: var(--error); }
.failed h2 { color: var(--error); margin-bottom: 4px; }
.failed th, .failed td { overflow-wrap: anywhere; }
.failed th:first-child { width: 34%; }

.viewer { display: flex; flex-wrap: wrap; align-items: center; border: 0; margin: 0; padding: 0; }
.viewer > legend, .viewer > input {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); margin: 0;
}
.viewer > label {
  border: 1px solid var(--line); margin-left: -1px; padding: 4px 12px; cursor: pointer;
  font-size: .93rem;
}
.viewer > legend + input + label { margin-left: 0; }
.viewer > input:checked + label { background: var(--ink); color: var(--page); }
.viewer > input:focus-visible + label { outline: 2px solid var(--link); outline-offset: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-left: auto; padding: 6px 0; }
.panes {
  flex: none; margin-top: 12px; display: grid; grid-template-columns: 1fr 1fr; gap: 16px;
  width: min(100%, 2 * var(--width), 2 * var(--height) * var(--aspect));
}
.tissue, .map { min-width: 0; }
.map { display: grid; align-self: start; background: #fff; }
.map img { grid-area: 1 / 1; }
.map { position: relative; }
.map b {
  position: absolute; transform: translate(-50%, -50%); padding: 0 4px; background: #fff;
  color: #222; border: 1px solid #bbb; font-size: .87rem; line-height: 1.3;
}
.panes img { display: block; width: 100%; height: auto; box-shadow: 0 0 0 1px var(--line); }
@media screen {
  .panes { --height: 85vh; }
  .viewer:not(:has(#view-side-by-side:checked)) .panes {
    grid-template-columns: 1fr; width: min(100%, var(--width), var(--height) * var(--aspect));
  }
  .viewer:not(:has(#view-side-by-side:checked)) .panes > div { grid-area: 1 / 1; }
  #view-overlay:checked ~ .panes .map, #view-outlines:checked ~ .panes .map { background: none; }
  #view-overlay:checked ~ .panes .fill { opacity: .45; }
  #view-outlines:checked ~ .panes .fill { opacity: 0; }
  #view-tissue:checked ~ .panes .map { visibility: hidden; }
}
.scale {
  display: flex; justify-content: flex-end; align-items: center; margin-top: 8px; font-size: .87rem;
}
.scale i { flex: none; margin-left: 8px; border-top: 6px solid var(--ink); }

.ratios {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr));
  gap: 20px 48px;
}
.ratios dd { color: var(--pale); font-size: .93rem; }
.ratios .value {
  color: var(--ink); font-size: 1.73rem; line-height: 1.3; font-variant-numeric: tabular-nums;
}
.facts { columns: 2; column-gap: 48px; }
.facts table { break-inside: avoid; margin-bottom: 24px; font-size: .93rem; }
.facts caption { text-align: left; font-weight: 600; padding-bottom: 4px; }
.facts th { width: 42%; color: var(--pale); }
.facts th, .facts td { padding-top: 4px; padding-bottom: 4px; }
.facts td { overflow-wrap: anywhere; }
.files li { display: flex; flex-wrap: wrap; gap: 0 16px; padding: 3px 0; }
.files a { min-width: 220px; overflow-wrap: anywhere; }
.files span { color: var(--pale); }

.counts { display: flex; flex-wrap: wrap; gap: 4px 28px; }
.counts b { font-size: 1.47rem; font-weight: 600; }
.slides th a {
  display: flex; align-items: center; gap: 14px; min-width: 190px; text-decoration: none;
}
.slides th a:hover { text-decoration: underline; }
.slides img { flex: none; width: 72px; height: 72px; object-fit: contain; background: #fff; }
.slides a span { overflow-wrap: anywhere; }
.slides small { display: block; }
.slides .note { color: var(--warning); }
.slides tbody > tr > * { vertical-align: middle; }
.slides td.bar { width: 18%; min-width: 120px; }
.slides thead .number .swatch { display: block; margin: 0 0 4px auto; }
.remaining { columns: 3 220px; overflow-wrap: anywhere; }

@media screen and (max-width: 640px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 1.53rem; }
  th, td { padding-left: 12px; }
  .facts { columns: 1; }
  .areas { font-size: .87rem; }
  .areas .number { padding-left: 8px; }
  .areas .bar { display: none; }
  .legend { margin-left: 0; }
  .viewer > label { padding: 4px 9px; }
  #view-side-by-side, #view-side-by-side + label { display: none; }
}
@page {
  size: A4; margin: 14mm 14mm 18mm;
  @bottom-left {
    content: "For research use only. Not for diagnosis."; font: 9px sans-serif; color: #666;
  }
  @bottom-right { content: counter(page) " / " counter(pages); font: 9px sans-serif; color: #666; }
}
@media print {
  html { font-size: 11px; }
  main { max-width: none; padding: 0; }
  section { margin-top: 22px; }
  h2, caption { break-after: avoid; }
  tr, .ratios div, .viewer { break-inside: avoid; }
  .wide { overflow: visible; }
  .viewer > label { display: none; }
  .legend { margin-left: 0; }
  .panes { --height: 120mm; }
}
"""
