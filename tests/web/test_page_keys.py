"""The labeling page in a real browser: keys, fingers, small screens, and a server in trouble."""

import re
import shutil
import signal

import numpy as np
import pytest

from data import patch_files, synthetic
from tests.web.labeling_page import Page, make_selector
from tests.web.labeling_server import Server

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATCHES = 12
PEOPLE = tuple(f"P{number}" for number in range(40))  # each opens one page, so that it is fresh
GONE = 999  # number of a patch that nobody has
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Gives the address of a person without any answers, and the server: by number of classes."""
    servers = {}

    def start(count):
        root = tmp_path_factory.mktemp(f"classes{count}")
        root.joinpath("patches").mkdir()
        rng = np.random.default_rng(0)
        for number in range(PATCHES):
            image, _ = synthetic.draw_patch(rng, 32)
            patch_files.write_image(root / "patches" / f"p{number}.png", image)
        classes = tuple(f"class {number + 1}" for number in range(count))
        server = Server(root, root / "server.log", PEOPLE, f"--config.classes={classes!r}")
        return server, iter(PEOPLE)

    def give(count=4):
        if count not in servers:
            servers[count] = start(count)
        server, people = servers[count]
        return server.addresses[next(people)], server

    yield give
    for server, _ in servers.values():
        server.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def make_page(browser, serve):
    """Makes a page that is not opened yet, its address and its server."""
    contexts = []

    def make(classes=4, **options):
        context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        contexts.append(context)
        return Page(context.new_page()), *serve(classes)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def page(make_page):
    made, address, _ = make_page()
    return made.open(address)


# ---- keys


def test_a_held_enter_presses_a_button_once(page):
    page.page.evaluate(
        "window.clicks = 0; addEventListener('click', () => window.clicks++, {capture: true})"
    )
    page.press("Tab")
    assert page.page.evaluate("document.activeElement.matches('button:focus-visible')")
    for _ in range(4):
        page.page.keyboard.down("Enter")
    page.page.keyboard.up("Enter")
    page.wait_until(lambda: page.is_set(0))
    assert page.page.evaluate("window.clicks") == 1
    assert len(page.posted) == 1


def test_enter_after_a_click_is_next(page):
    page.page.click(make_selector(1))
    page.wait_until(lambda: page.is_set(1))
    page.leave("Enter")
    assert [event["kind"] for event in page.posted] == ["set", "done"]


@pytest.mark.parametrize(
    ("key", "code"), [("&", "Digit1"), ("+", "Digit1"), ("1", "Numpad1"), ("1", "Digit1")]
)
def test_digits_of_any_keyboard(page, key, code):
    dispatch = "event => document.body.dispatchEvent(new KeyboardEvent('keydown', event))"
    page.page.evaluate(dispatch, {"key": key, "code": code, "bubbles": True})
    page.wait_until(lambda: page.is_set(0))


@pytest.mark.parametrize(
    "event", [{"key": "z", "metaKey": True}, {"key": "Z", "ctrlKey": True}, {"key": "Backspace"}]
)
def test_keys_that_take_back(page, event):
    page.set(0)
    dispatch = "event => document.body.dispatchEvent(new KeyboardEvent('keydown', event))"
    page.page.evaluate(dispatch, event | {"bubbles": True})
    page.wait_until(lambda: not page.is_set(0))


def test_keys_for_a_patch_that_is_left_are_dropped(page):
    page.set(0)
    held = page.hold("**/event")
    first = page.shown()
    page.press("Enter", "2", "Enter")
    page.wait_until(lambda: held)
    page.let_go("**/event", held)
    page.wait_until(lambda: page.shown() != first)
    page.wait_for_picture()
    page.set(2)  # comes after all that was pressed before
    assert not page.is_set(1)
    assert [event["kind"] for event in page.posted] == ["set", "done", "set"]


def test_a_patch_is_answered_when_it_is_seen(make_page):
    page, address, _ = make_page()
    held = page.hold("**/patch/*")
    page.page.goto(address, wait_until="commit")
    page.page.wait_for_selector("#picture[aria-busy=true]", state="attached")
    page.press("1", "Enter", "Enter", "?")
    page.page.click(make_selector(1))
    page.page.click("#cannot-tell")
    page.let_go("**/patch/*", held)
    page.wait_for_picture()
    page.set(2)
    assert not page.is_set(0) and not page.is_set(1)
    assert len(page.posted) == 1


def test_a_picture_that_is_gone_leaves_cannot_tell_and_undo(make_page):
    page, address, _ = make_page()
    lost = []

    def lose_the_first(route):
        lost.append(route.request.url)
        if route.request.url == lost[0]:
            route.continue_(url=re.sub(r"patch/.*", f"patch/{GONE}", lost[0]))
        else:
            route.continue_()

    page.page.route("**/patch/*", lose_the_first)
    page.open(address)
    assert "cannot be shown" in page.says()
    page.press("1", "Enter", "Enter")
    page.leave("?")
    assert [event["value"] for event in page.posted] == ["?"]
    assert page.says() == ""
    page.set(0)
    page.press("Backspace")
    page.wait_until(lambda: not page.is_set(0))


def test_a_tab_that_is_seen_again_shows_what_another_did(page):
    page.press("Enter")
    page.wait_until(lambda: "None of these" in page.says())
    page.come_back()
    page.wait_until(lambda: page.says() == "")
    first = page.shown()
    page.press("Enter")  # asks again
    page.wait_until(lambda: "None of these" in page.says())
    assert page.shown() == first and not page.posted
    other = Page(page.page.context.new_page()).open(page.page.url)
    assert other.shown() == first
    other.set(3)
    page.come_back()
    page.wait_until(lambda: page.is_set(3))
    assert page.says() == ""


# ---- fingers


def test_fingers_on_a_zoomed_page_answer_nothing(make_page):
    page, address, _ = make_page(
        viewport={"width": 420, "height": 800}, has_touch=True, is_mobile=True
    )
    page.open(address)
    session = page.page.context.new_cdp_session(page.page)
    first = page.shown()
    session.send("Emulation.setPageScaleFactor", {"pageScaleFactor": 2})
    page.wait_until(lambda: page.page.evaluate("visualViewport.scale") > 1.9)
    page.swipe_left()
    session.send("Emulation.setPageScaleFactor", {"pageScaleFactor": 1})
    page.wait_until(lambda: page.page.evaluate("visualViewport.scale") == 1)
    assert page.says() == ""
    page.swipe_left()
    page.wait_until(lambda: "None of these" in page.says())
    assert page.shown() == first and not page.posted


# ---- a server in trouble


def test_a_server_that_hangs_is_waited_for(make_page):
    page, address, server = make_page()
    page.open(address)
    server.process.send_signal(signal.SIGSTOP)
    try:
        page.press("1")
        page.wait_until(lambda: "Not saved" in page.says())
        page.press("2")
    finally:
        server.process.send_signal(signal.SIGCONT)
    page.wait_until(lambda: page.is_set(0))
    page.wait_until(lambda: page.says() == "")
    page.set(2)
    assert not page.is_set(1)
    assert len({event["key"] for event in page.posted}) == 2


def test_what_is_fetched_ahead_may_fail(page):
    asked = []

    def refuse(route):
        asked.append(route.request.url)
        route.abort()

    page.page.route("**/next?*", refuse)
    page.set(0)
    page.leave("Enter")
    page.wait_until(lambda: asked)
    page.set(1)
    assert page.says() == ""
    page.come_back()
    page.wait_until(lambda: len(asked) > 1)
    page.set(2)
    assert page.says() == ""


def test_a_picture_is_fetched_again(make_page):
    page, address, _ = make_page()
    asked, said = [], []

    def fail_at_first(route):
        said.append(page.says() if asked else "")
        asked.append(route.request.url)
        if asked.count(asked[0]) < 3 and route.request.url == asked[0]:
            route.abort()
        else:
            route.continue_()

    page.page.route("**/patch/*", fail_at_first)
    page.open(address)
    assert page.page.evaluate("document.getElementById('picture').naturalWidth") == 32
    assert page.says() == "" and not any("cannot" in text for text in said)
    page.set(0)


def test_an_answer_of_something_between_is_none(page):
    said = []

    def answer_once(route):
        said.append(page.says())
        if len(said) == 1:
            route.fulfill(status=200, content_type="text/html", body="<p>Sign in to the network")
        else:
            route.continue_()

    page.page.route("**/event", answer_once)
    page.set(0)
    assert said[0] == "" and "Not saved" in said[1]
    page.wait_until(lambda: page.says() == "")
    assert len({event["key"] for event in page.posted}) == 1


def test_after_a_refused_patch_comes_the_next(page):
    gone = {"patch": GONE, "draft": {}}
    page.open_changed(lambda state: state["start"]["patches"].insert(0, gone))
    assert page.shown() == GONE
    page.leave("?")
    assert str(GONE) in page.says()
    page.set(0)


def test_an_undone_patch_that_is_gone_is_passed_over(page):
    first = page.shown()
    page.set(0)
    page.leave("Enter")

    def name_a_gone_patch(route):
        response = route.fetch()
        answer = response.json()
        answer["undone"] = {"kind": "done", "patch": GONE}  # of one that is there it says more
        route.fulfill(response=response, json=answer)

    page.page.route("**/event", name_a_gone_patch)
    page.leave("Backspace")
    assert page.shown() == first
    assert "not there" in page.says()


# ---- what is sent


def test_the_page_says_whose_it_is(page):
    asked = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.open_changed(lambda state: state.update(person=4321))
    page.press("1")
    page.wait_until(lambda: page.posted)
    assert page.posted[0]["person"] == 4321
    page.come_back()
    page.wait_until(lambda: any("/next?" in url and "&person=4321" in url for url in asked))


def test_pictures_are_where_the_server_says(page):
    def move(state):
        for each in state["start"]["patches"]:
            each["picture"] = f"/patch/{each['patch']}?moved"

    page.open_changed(move)
    assert page.page.get_attribute("#picture", "src") == f"/patch/{page.shown()}?moved"


# ---- what is seen


@pytest.mark.parametrize(
    ("width", "height", "classes"),
    [
        (420, 800, 4),
        (420, 800, 12),
        (375, 553, 4),
        (375, 553, 12),
        (667, 375, 12),
        (1400, 900, 34),
    ],
)
def test_patch_and_actions_stay_in_view(make_page, width, height, classes):
    page, address, _ = make_page(classes, viewport={"width": width, "height": height})
    page.open(address)
    bottom = "scrollTo(0, document.documentElement.scrollHeight)"
    for _ in range(2):
        assert page.is_in_view("#picture") and page.is_in_view("#next") and page.is_in_view("#undo")
        page.page.evaluate(bottom)
        assert page.is_in_view("#picture") and page.is_in_view("#next") and page.is_in_view("#undo")
        before = page.page.locator("#next").bounding_box()
        page.page.click("#next")
        page.wait_until(lambda: "None of these" in page.says())
        assert page.is_in_view("#message")
        assert page.page.locator("#next").bounding_box() == before
        for index in (0, classes - 1):
            page.page.click(make_selector(index))
            page.wait_until(lambda index=index: page.is_set(index))
        page.page.evaluate(bottom)
        first = page.shown()
        page.page.click("#next")
        page.wait_until(lambda first=first: page.shown() != first)
        page.wait_for_picture()
    assert page.page.evaluate("scrollX + scrollY") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_can_be_read(make_page, scheme):
    page, address, _ = make_page(color_scheme=scheme)
    page.open(address)
    page.set(0)
    page.press("1", "Enter")
    page.wait_until(lambda: "None of these" in page.says())
    assert min(page.list_contrasts())[0] > 4.5
    for _ in range(PATCHES - 1):
        page.leave("?")
    page.press("?")
    page.wait_until(lambda: "All patches" in page.says())
    assert min(page.list_contrasts())[0] > 4.5


@pytest.mark.parametrize(
    ("classes", "keys"), [(4, "1\u20134: yes"), (12, "1\u20139, 0, letters: yes")]
)
def test_help_is_of_what_is_there(make_page, classes, keys):
    page, address, _ = make_page(classes)
    page.open(address)
    text = page.page.inner_text(".help.keys")
    assert text.startswith(keys) and "S:" not in text
