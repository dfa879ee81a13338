"""The page of a cohort as text; `test_cohort_browser` sorts and filters it."""

import re

import pytest

from tests.report.parsed_page import AREAS, RATIOS, Page
from wsss_jax.report import cohort_page, strips
from wsss_jax.report.cohort_page import Index, IndexEntry, Reason
from wsss_jax.report.strips import Value


def write(path, entries, **more) -> Page:
    cohort_page.write_index(path, Index(entries, **more))
    return Page(path)


def test_the_index_counts_and_puts_failures_first(tmp_path):
    look = (Reason("low confidence", "30 % of the area is under 0.6"),)
    entries = [
        IndexEntry("good", "a folder/#1", 20.0, AREAS, RATIOS, reasons=look),
        IndexEntry("empty", "empty", 0.0, [area._replace(mm2=0.0) for area in AREAS], ()),
        IndexEntry("bad", error="bad.svs: not a slide; remove it"),
        *(IndexEntry(f"later {number}") for number in range(3)),
    ]
    page = write(tmp_path / "index.html", entries, tables={"cohort.csv": "all"})
    text = " ".join(" ".join(page.texts).split())
    assert "6 slides" in text and "2 finished 1 failed 3 remaining 2 need a look" in text
    words = ["bad.svs: not", "good", "30 % of the area", "empty", "later"]
    places = [text.index(name) for name in words]
    assert places == sorted(places)
    report = "./a%20folder/%231/report.html"
    in_table = [link for link in page.values("a", "href") if "report.html" in link]
    # Once among those that need a look, once in the table, then in the distributions.
    assert in_table[:3] == [report, report, "./empty/report.html"]
    assert page.values("img", "src") == ["./a%20folder/%231/small.jpg", "./empty/small.jpg"]
    assert "background" not in page.texts  # no class
    assert "./cohort.csv" in page.values("a", "href")
    assert "Reload it" in text


def test_an_index_of_nothing_finished_has_no_empty_tables(tmp_path):
    page = write(tmp_path / "index.html", [IndexEntry("later")])
    assert "1 slide" in page.texts and not page.values("table", "class")
    assert not page.values("svg", "width") and "need a look" not in " ".join(page.texts)


def test_names_that_are_no_text_are_written_and_linked(tmp_path):
    name = b"slide \xff".decode("utf-8", "surrogateescape")
    page = write(tmp_path / "index.html", [IndexEntry(name, name)])
    assert page.values("a", "href") == ["./slide%20%FF/report.html"]
    assert "slide \\udcff" in page.texts


def test_rows_have_numbers_to_sort_by(tmp_path):
    entries = [IndexEntry("a", "a", 12.5, AREAS, RATIOS, 0.25), IndexEntry("b", "b")]
    page = write(tmp_path / "index.html", entries)
    heads = [given.get("data-sort") for tag, given in page.tags if tag == "th"]
    # of the list of what needs a look there is none; name, bar, tissue, 2 classes, 2 ratios
    assert heads[:8] == ["text", None, *["number"] * 6]
    cells = [given for tag, given in page.tags if tag == "td" and "data-value" in given]
    first, second = cells[:6], cells[6:]
    assert [cell["data-value"] for cell in first] == [
        *("12.5", "0.9997", "0.0003"),
        *("0.0003", "", "0.25"),
    ]
    assert [cell["data-mm2"] for cell in first if "data-mm2" in cell] == ["12.34567", "3e-05"]
    assert [cell["data-value"] for cell in second] == ["0.0", "", "", "", "", ""]


def test_distributions_have_a_linked_point_for_each_slide(tmp_path):
    outlier = (Reason("outlier", "far", "tumor"),)
    entries = [
        IndexEntry(name, name, mm2, AREAS, RATIOS[:1], share, outlier if name == "b" else ())
        for name, mm2, share in (("a", 1.0, 0.5), ("b", 4.0, 0.25), ("c", 2.0, None))
    ]
    page = write(tmp_path / "index.html", entries)
    labels = page.values("svg", "aria-label")
    assert [label.partition(":")[0] for label in labels] == [
        *("Tissue", "tumor", "stroma", "Tumor-stroma ratio", "Uncertain area")
    ]
    assert labels[0].endswith("3 slides, median 2.000 mm²")
    assert labels[-1].endswith("2 slides, median 37.5 %")
    circles = [given for tag, given in page.tags if tag == "circle"]
    assert [float(each["cx"].rstrip("%")) for each in circles[:3]] == [25, 50, 100]
    assert [each.get("class") for each in circles[3:6]] == [None, None, "outlier"]
    assert sum("class" in each for each in circles) == 1
    links = [given for tag, given in page.tags if tag == "a" and given.get("tabindex") == "-1"]
    assert len(links) == len(circles) == 4 * 3 + 2
    assert {given["href"] for given in links} == {f"./{name}/report.html" for name in "abc"}
    assert "c: 2.000 mm²" in page.texts


def test_equal_values_lie_beside_each_other():
    values = [Value(str(number), "", 0.5, "") for number in range(30)]
    (strip,) = (strips.make_strip("x", None, values, 1.0, ("", "", "")),)
    heights = sorted(y for _, y, _ in strip.points)
    assert len(set(heights)) == 30
    assert heights[0] >= strips.RADIUS and heights[-1] <= strips.HEIGHT - strips.RADIUS
    few = strips.make_strip("x", None, values[:3], 1.0, ("", "", "")).points
    assert sorted(y for _, y, _ in few) == [strips.HEIGHT / 2 + at for at in (-8, 0, 8)]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_median_line_is_the_median(count):
    values = [Value(str(n), "", (n * 7 % 10) / 10, "") for n in range(count)]
    ordered = sorted(each.value for each in values)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    assert strips.make_strip("", None, values, 1.0, ("",) * 3).median == pytest.approx(100 * middle)


def test_the_script_has_no_data(tmp_path):
    one = write(tmp_path / "1.html", [IndexEntry("a", "a", 1.0, AREAS, RATIOS)])
    two = write(tmp_path / "2.html", [IndexEntry("b<", "b", 2.0, AREAS[:1])])
    assert one.scripts == two.scripts and len(one.scripts) == 1
    assert not re.search(r"innerHTML|eval|document\.write", one.scripts[0])
