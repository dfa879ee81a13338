import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from wsss_jax.report import slide_pages
from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pages import Area, IndexEntry, Ratio, SlideReport
from wsss_jax.report.slide_pictures import SlidePictures

NASTY = '<script>alert(1)</script> & "it\'s" </style>'
COLORS = ((205, 51, 51), (255, 165, 0), (255, 255, 255))
AREAS = (
    Area("tumor", COLORS[0], 1_234_567, 12.34567, 0.9997, 0.4),
    Area("stroma", COLORS[1], 3, 0.00003, 0.0003, 0.0),
    Area("background", None, 2_000_000, 20.0, None, 0.6),
)
RATIOS = (Ratio("Tumor-stroma ratio", 0.0003, "of the whole slide"), Ratio(NASTY, None, NASTY))
VOID = ("meta", "img", "input")


class Page(HTMLParser):
    """Every start tag with its attributes, and the visible text in pieces.

    White space between elements is no text.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data)

    def values(self, tag: str, attribute: str) -> list:
        return [attributes.get(attribute) for name, attributes in self.tags if name == tag]


def report(name: str = "slide", warnings: tuple[str, ...] = ()) -> SlideReport:
    labels = np.tile(np.repeat(np.arange(3, dtype=np.uint8), 20), (30, 1))
    thumbnail = np.full((30, 60, 3), 200, np.uint8)
    pictures = SlidePictures(thumbnail, labels, 8.0, Legend(("tumor", "stroma"), COLORS))
    facts = {"Networks": {"Phase 2": name}}
    return SlideReport(name, pictures, AREAS, RATIOS, facts, warnings, {"a #1:%.csv": name})


@pytest.fixture(params=["report", "index"])
def page(request, tmp_path) -> Page:
    """A page in which every text that may hold markup does."""
    path = tmp_path / "new" / "page.html"
    if request.param == "report":
        slide_pages.write_report(path, report(NASTY, (NASTY,)))
    else:
        finished = IndexEntry(NASTY, NASTY, AREAS, RATIOS, (NASTY,))
        failed, remaining = IndexEntry(NASTY, error=NASTY), IndexEntry(NASTY)
        slide_pages.write_index(path, [finished, failed, remaining])
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    return Page(path)


def test_any_text_is_shown_as_it_is(page):
    assert page.texts.count(NASTY) >= 4
    assert "script" not in {tag for tag, _ in page.tags}


def test_pages_are_accessible(page):
    assert page.values("html", "lang") == ["en"]
    assert page.source.count("<title>") == 1
    assert None not in page.values("th", "scope")
    assert None not in page.values("img", "alt")
    assert page.values("input", "id") == page.values("label", "for")


def test_pages_ask_for_nothing_from_the_network(page):
    assert "http" not in page.source and "//" not in "".join(page.values("a", "href"))
    assert "url(" not in page.source and "@import" not in page.source
    assert not {"link", "iframe"} & {tag for tag, _ in page.tags}


def test_text_has_contrast(page):
    def luminance(color: str) -> float:
        digits = color if len(color) == 6 else "".join(2 * digit for digit in color)
        channels = np.array([int(digits[at : at + 2], 16) for at in (0, 2, 4)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ (0.2126, 0.7152, 0.0722))

    themes = re.findall(r":root \{(.*?)\}", page.source, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colors = dict(re.findall(r"--([\w-]+): #(\w+)", theme))
        pairs = [(ink, "page") for ink in ("ink", "pale", "link", "error", "warning")]
        for ink, paper in [*pairs, ("warning", "warning-page"), ("ink", "warning-page")]:
            dark, light = sorted((luminance(colors[ink]), luminance(colors[paper])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


def test_a_report_is_one_file_with_its_pictures(tmp_path):
    slide_pages.write_report(tmp_path / "report.html", report())
    page = Page(tmp_path / "report.html")
    assert len(page.values("img", "src")) == 3
    assert all(source.startswith("data:image/") for source in page.values("img", "src"))
    assert page.values("a", "href") == ["./a%20%231%3A%25.csv"]
    assert "For research use only. Not for diagnosis." in page.texts
    assert "Warnings" not in page.texts
    slide_pages.write_report(tmp_path / "again.html", report())
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_numbers_are_readable_and_never_rounded_to_nothing(tmp_path):
    slide_pages.write_report(tmp_path / "report.html", report())
    texts = Page(tmp_path / "report.html").texts
    tumor = texts.index("1,234,567")
    assert texts[tumor : tumor + 4] == ["1,234,567", "12.35", "> 99.9 %", "40.0 %"]
    stroma = texts.index("3")
    assert texts[stroma : stroma + 4] == ["3", "< 0.01", "< 0.1 %", "0.0 %"]
    background = texts.index("2,000,000")
    assert texts[background : background + 4] == ["2,000,000", "20.00", "n/a", "60.0 %"]


def test_the_scale_bar_has_its_share_of_the_width(tmp_path):
    slide_pages.write_report(tmp_path / "report.html", report())
    page = Page(tmp_path / "report.html")
    assert "100 µm" in page.texts  # of 60 pixels of 8 µm
    assert "width: 20.8333%" in page.values("i", "style")


def test_classes_are_numbered_in_legend_and_map(tmp_path):
    of_slide = report()
    large = np.tile(np.repeat(np.arange(3, dtype=np.uint8), 100), (300, 1))
    pictures = of_slide.pictures._replace(
        thumbnail=np.full((*large.shape, 3), 200, np.uint8), labels=large
    )
    slide_pages.write_report(tmp_path / "report.html", of_slide._replace(pictures=pictures))
    page = Page(tmp_path / "report.html")
    assert {"0 tumor", "1 stroma"} <= set(page.texts)
    numbered = [attributes for name, attributes in page.tags if name == "b"]
    assert all(attributes["aria-hidden"] == "true" for attributes in numbered)
    left = [float(re.search(r"left: ([\d.]+)%", each["style"])[1]) for each in numbered]
    assert min(left) < 100 / 3 < max(left) < 200 / 3 and {"0", "1"} <= set(page.texts)


def test_the_index_counts_and_puts_failures_first(tmp_path):
    entries = [
        IndexEntry("good", "a folder/#1", AREAS, RATIOS, ("one",)),
        IndexEntry("empty", "empty", [area._replace(mm2=0.0) for area in AREAS], ()),
        IndexEntry("bad", error="bad.svs: not a slide; remove it"),
        *(IndexEntry(f"later {number}") for number in range(3)),
    ]
    slide_pages.write_index(tmp_path / "index.html", entries)
    page = Page(tmp_path / "index.html")
    text = " ".join(" ".join(page.texts).split())
    assert "6 slides" in text and "2 finished 1 failed 3 remaining" in text
    places = [text.index(name) for name in ("bad.svs: not", "good", "1 warning", "empty", "later")]
    assert places == sorted(places)
    assert page.values("a", "href") == ["./a%20folder/%231/report.html", "./empty/report.html"]
    assert page.values("img", "src") == ["./a%20folder/%231/small.jpg", "./empty/small.jpg"]
    assert "background" not in page.texts  # no class


def test_an_index_of_nothing_finished_has_no_empty_tables(tmp_path):
    slide_pages.write_index(tmp_path / "index.html", [IndexEntry("later")])
    page = Page(tmp_path / "index.html")
    assert "1 slide" in page.texts and not page.values("table", "class")


def test_names_that_are_no_text_are_written_and_linked(tmp_path):
    name = b"slide \xff".decode("utf-8", "surrogateescape")
    slide_pages.write_index(tmp_path / "index.html", [IndexEntry(name, name)])
    page = Page(tmp_path / "index.html")
    assert page.values("a", "href") == ["./slide%20%FF/report.html"]
    assert "slide \\udcff" in page.texts
