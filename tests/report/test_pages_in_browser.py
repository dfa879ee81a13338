"""The index is sorted and filtered in a real browser, by mouse and by keys."""

import http.server
import shutil
import threading
from functools import partial

import pytest

from tests.report.parsed_page import AREAS, NASTY, RATIOS
from tests.report.test_slide_pages import place, report
from wsss_jax.report import cohort_page, slide_pages
from wsss_jax.report.cohort_page import Index, IndexEntry, Reason

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium"),
    pytest.mark.xdist_group("browser"),
]
NAMES = ("slide 10", "slide 9", "b", NASTY)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path):
    """An index whose class has most mm2 where its share is lowest, and a report."""
    entries = []
    for number, name in enumerate(NAMES):
        area = AREAS[0]._replace(share_of_tissue=0.1 * (number + 1), mm2=[30, 200, 9, 1][number])
        reasons = (Reason("outlier", NASTY, NASTY),) if number == 1 else ()
        ratios = [RATIOS[0]._replace(value=[0.5, None, 0.05, 0.2][number])]
        entries.append(IndexEntry(name, f"{number}", 5.0, [area], ratios, reasons=reasons))
    entries += [IndexEntry("bad", error=NASTY), IndexEntry("later")]
    cohort_page.write_index(tmp_path / "index.html", Index(entries))
    slide_pages.write_report(
        tmp_path / "report.html", report()._replace(places=[place(NASTY), place()])
    )
    return tmp_path


@pytest.fixture
def open_page(chromium):
    """Opens a page at a width, and checks that no script fails or runs that is not ours."""
    contexts, problems = [], []

    def open_at(address, width=1400, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not problems


def read_order(page):
    return page.eval_on_selector_all(
        ".sortable tbody tr", "rows => rows.map((row) => row.dataset.name)"
    )


def read_state(page):
    """Returns (heading, aria-sort) of the columns that are sorted."""
    return page.eval_on_selector_all(
        "th[aria-sort]", "heads => heads.map((h) => [h.innerText.trim(), h.ariaSort])"
    )


def test_rows_are_sorted_by_a_click(open_page, folder):
    page = open_page((folder / "index.html").as_uri())
    assert read_order(page) == list(NAMES) and read_state(page) == []
    page.get_by_role("button", name="Slide", exact=True).click()
    assert read_order(page) == [NASTY, "b", "slide 9", "slide 10"]  # as numbers, not letters
    page.get_by_role("button", name="Slide", exact=True).click()
    assert read_order(page) == ["slide 10", "slide 9", "b", NASTY]
    assert [state for _, state in read_state(page)] == ["descending"]
    page.get_by_role("button", name="tumor", exact=True).click()
    assert read_order(page) == [NASTY, "b", "slide 9", "slide 10"]
    page.get_by_role("button", name="tumor, mm²").click()
    assert read_order(page) == ["slide 9", "slide 10", "b", NASTY]
    page.get_by_role("button", name="tumor, mm²").click()
    assert read_order(page) == [NASTY, "b", "slide 10", "slide 9"]
    assert [state for _, state in read_state(page)] == ["ascending"]


def test_undefined_values_come_last(open_page, folder):
    page = open_page((folder / "index.html").as_uri())
    ratio = page.get_by_role("button", name="Tumor-stroma ratio")
    ratio.click()
    assert read_order(page) == ["slide 10", NASTY, "b", "slide 9"]
    ratio.click()
    assert read_order(page) == ["b", NASTY, "slide 10", "slide 9"]


def test_rows_are_sorted_by_keys(open_page, folder):
    page = open_page((folder / "index.html").as_uri(), width=420)
    page.focus("#filter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText.trim()") == "tumor":
            break
    page.keyboard.press("Enter")
    assert read_order(page) == [NASTY, "b", "slide 9", "slide 10"]
    page.keyboard.press("Space")
    assert read_order(page) == list(NAMES)
    assert [state for _, state in read_state(page)] == ["ascending"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_the_filter_takes_parts_of_names(open_page, folder):
    page = open_page((folder / "index.html").as_uri())

    def count(selector):
        return page.locator(f"{selector} [data-name]:not(.left-out)").count()

    assert (count(".sortable"), count(".attention"), count(".remaining")) == (4, 2, 1)
    page.fill("#filter", "SLIDE")
    assert page.locator("output").inner_text() == "2 of 6 slides"
    assert (count(".sortable"), count(".attention"), count(".remaining")) == (2, 1, 0)
    page.get_by_role("button", name="tumor", exact=True).click()
    assert count(".sortable") == 2 and count(".strips figure:first-of-type") == 2
    page.fill("#filter", "<script>")
    assert page.locator("output").inner_text() == "1 of 6 slides"
    page.fill("#filter", "")
    assert page.locator("output").inner_text() == "" and count(".sortable") == 4


def test_the_index_is_whole_without_scripts(open_page, folder):
    page = open_page((folder / "index.html").as_uri(), java_script_enabled=False)
    assert page.locator(".sortable tbody tr").count() == 4
    assert not page.locator("#filter").is_visible() and page.locator("th button").count() == 0
    assert page.locator("circle").count() == 4 * 2 + 3
    assert page.get_by_text("failed:").is_visible()


def test_places_link_to_the_viewer_where_there_is_a_server(open_page, folder):
    page = open_page((folder / "report.html").as_uri())
    assert page.locator("[data-viewer]").count() == 3  # of the whole slide, and of two places
    assert not page.locator("[data-viewer]").first.is_visible()
    letters = page.locator(".map a")
    assert not letters.first.is_visible()
    page.get_by_text("Places", exact=True).click()
    assert letters.first.is_visible() and letters.all_inner_texts() == ["A", "B"]
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{server.server_port}/report.html")
        link = page.locator("[data-viewer]").nth(1)
        assert link.is_visible() and link.get_attribute("href") == "view.html#x=1&y=2&width=3"
        server.shutdown()
