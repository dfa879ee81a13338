import re

import numpy as np
import pytest

from tests.report.parsed_page import AREAS, COLORS, NASTY, RATIOS, Page
from wsss_jax.report import cohort_page, slide_pages
from wsss_jax.report.cohort_page import Index, IndexEntry, Reason
from wsss_jax.report.legend import Legend
from wsss_jax.report.pages import TEMPLATES
from wsss_jax.report.slide_pages import Certainty, PlaceView, SlideReport
from wsss_jax.report.slide_pictures import SlidePictures


def report(name: str = "slide", warnings: tuple[str, ...] = ()) -> SlideReport:
    labels = np.tile(np.repeat(np.arange(3, dtype=np.uint8), 20), (30, 1))
    thumbnail = np.full((30, 60, 3), 200, np.uint8)
    pictures = SlidePictures(thumbnail, labels, 8.0, Legend(("tumor", "stroma"), COLORS))
    facts = {"Networks": {"Phase 2": name}}
    return SlideReport(name, pictures, AREAS, RATIOS, facts, warnings, {"a #1:%.csv": name})


def place(text: str = "stroma") -> PlaceView:
    pictures = report().pictures
    return PlaceView("Hot spots", text, text, pictures, (0.5, 0.25), "view.html#x=1&y=2&width=3")


@pytest.fixture(params=["report", "index"])
def page(request, tmp_path) -> Page:
    """A page in which every text that may hold markup does."""
    path = tmp_path / "new" / "page.html"
    if request.param == "report":
        certainty = Certainty(0.6, 0.5, {"tumor": 0.25, NASTY: 0.5})
        shown = report(NASTY, (NASTY,))._replace(places=[place(NASTY)] * 2, certainty=certainty)
        slide_pages.write_report(path, shown)
    else:
        reasons = (Reason(NASTY, NASTY, NASTY), Reason("outlier", "far", "tumor"))
        finished = IndexEntry(NASTY, NASTY, 1.0, AREAS, RATIOS, 0.5, reasons)
        failed, remaining = IndexEntry(NASTY, error=NASTY), IndexEntry(NASTY)
        entries = [finished, finished._replace(name="b"), failed, remaining]
        cohort_page.write_index(path, Index(entries, (NASTY,), (NASTY,), {NASTY: NASTY}))
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    return Page(path)


def test_any_text_is_shown_as_it_is(page):
    assert page.texts.count(NASTY) >= 4
    own = [(TEMPLATES / name).read_text("utf-8").strip() for name in ("report.js", "cohort.js")]
    assert [script.strip() for script in page.scripts] in ([own[0]], [own[1]])
    assert page.source.count("<script") == 1 and "alert(1)</script>" not in page.source
    assert not [name for _, given in page.tags for name in given if name.startswith("on")]


def test_pages_are_accessible(page):
    assert page.values("html", "lang") == ["en"]
    assert page.source.partition("<body>")[0].count("<title>") == 1
    assert None not in page.values("th", "scope")
    assert None not in page.values("img", "alt")
    inputs, labels = page.values("input", "id"), page.values("label", "for")
    assert sorted(inputs) == sorted(labels)


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
    # The first is hidden where there is no viewer.
    assert page.values("a", "href") == ["view.html", "./a%20%231%3A%25.csv"]
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
