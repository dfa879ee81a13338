"""Maps in a real browser: positions, switches, a drawn region, a server that is started again."""

import re
import shutil
import socket
import threading
import time

import cv2
import numpy as np
import pytest
import shapely
import uvicorn

from tests.web.drawn_maps import (
    BOUNDS,
    MAP_MPP,
    MPP,
    NASTY,
    TOKEN,
    Pages,
    change_summary,
    make_maps,
    read_labels,
)

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCALE = MAP_MPP / MPP
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium"),
    pytest.mark.xdist_group("browser"),
]


class Server:
    """Serves maps in a thread, until it is stopped."""

    def __init__(self, maps, port=0, corrections=None):
        self.pages = Pages(maps, corrections=corrections)
        listening = socket.create_server(("127.0.0.1", port))
        self.port = listening.getsockname()[1]
        settings = uvicorn.Config(self.pages.app, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, args=([listening],))
        self._thread.start()

    def stop(self):
        self._server.should_exit = True
        self._thread.join()
        self.pages.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("viewer")
    for name in ("drawn", NASTY):
        change_summary(make_maps(root, name), bounds=BOUNDS)
    return root


@pytest.fixture(scope="module")
def server(root):
    server = Server(root / "maps")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: _note(message, problems))
    page.goto(f"http://127.0.0.1:{server.port}/enter/{TOKEN}")
    page.wait_for_url("**/maps/")
    yield page
    page.close()
    assert problems == []


def _note(message, problems):
    if message.type == "error" and "favicon" not in message.location["url"]:
        problems.append(message.text)


def show(page, server, address, name="drawn"):
    page.goto("about:blank")
    page.goto(f"http://127.0.0.1:{server.port}/maps/{name}/view.html{address}")
    wait(page)


def wait(page):
    """Waits until all tiles are there, and nothing moves."""
    page.wait_for_function("() => TissueMap.stage && TissueMap.stage.isStill()", timeout=60_000)
    page.wait_for_timeout(100)


def take_picture(page, element="#map"):
    picture = page.screenshot(clip=page.locator(element).bounding_box())
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def locate(picture, x, y, width):
    """Returns where each pixel of the screen lies, in pixels of the map, by the address alone."""
    height_px, width_px = picture.shape[:2]
    step = width / width_px / MAP_MPP
    rows, columns = np.indices((height_px, width_px))
    return (
        (BOUNDS[0] * MPP + x) / MAP_MPP + (columns + 0.5 - width_px / 2) * step,
        (BOUNDS[1] * MPP + y) / MAP_MPP + (rows + 0.5 - height_px / 2) * step,
        step,
    )


@pytest.fixture(scope="module")
def palette(server):
    from tests.web.drawn_maps import read_state

    state = read_state(server.pages.visit().get("/maps/drawn/view.html").text)
    return np.array([*(each["color"] for each in state["classes"]), [255, 255, 255]])


@pytest.mark.parametrize("width", [611.0, 305.0, 150.0, 61.3, 20.0])
@pytest.mark.parametrize("beside", ["", "&beside=1"])
def test_every_pixel_of_the_screen_has_the_class_at_its_place(
    page, server, root, palette, width, beside
):
    labels = read_labels(root / "maps" / "drawn")
    x, y = 333.3, 257.7
    show(page, server, f"#x={x}&y={y}&width={width}&opacity=100{beside}")
    picture = take_picture(page)
    columns, rows, step = locate(picture, x, y, width)
    inside = (columns >= 0) & (rows >= 0)
    inside &= (columns < labels.shape[1]) & (rows < labels.shape[0])
    found = labels[
        rows.astype(int).clip(0, labels.shape[0] - 1),
        columns.astype(int).clip(0, labels.shape[1] - 1),
    ]
    # Where nothing is shown, and not where the page writes on the slide.
    inside &= found < len(palette) - 1
    inside[:70, :360] = inside[-70:, -240:] = False
    # A center that lies on a border may be on either side, by rounding.
    for position in (columns, rows):
        inside &= np.abs(position - np.rint(position)) > 0.01 * step
    assert inside.sum() > 50_000
    np.testing.assert_array_equal(picture[inside], palette[found][inside])


def test_tissue_lies_under_its_map(page, server, root):
    show(page, server, "#x=300&y=200&width=300&opacity=0")
    picture = take_picture(page, "#tissue")
    columns, rows, _ = locate(picture, 300, 200, 300)
    from wsss_jax.slides.reading.slide import open_slide

    with open_slide(root / "slides" / "drawn.tif") as slide:
        pixels = slide.read(0, 0, 0, slide.width, slide.height).astype(int)
    differences = {}
    for shift in (-3, 0, 3):  # pixels of the slide
        x = (columns * SCALE + shift).astype(int).clip(0, pixels.shape[1] - 1)
        y = (rows * SCALE + shift).astype(int).clip(0, pixels.shape[0] - 1)
        difference = np.abs(pixels[y, x] - picture)
        differences[shift] = difference[100:-100, 100:-100].mean()
    assert differences[0] < 0.6 * min(differences[-3], differences[3])


def test_classes_opacity_and_layers_are_switched_by_keys(page, server, palette):
    show(page, server, "#x=300&y=200&width=300&opacity=100")
    whole = take_picture(page)
    first = (whole == palette[0]).all(-1)
    assert first.sum() > 1000
    page.keyboard.press("1")
    wait(page)
    without = take_picture(page)
    assert not (without[100:, 400:-250] == palette[0]).all(-1).any()
    others = (whole == palette[2]).all(-1)
    assert (without[others] == palette[2]).all()
    page.keyboard.press("1")
    page.keyboard.press("o")
    wait(page)
    assert not (take_picture(page) == palette[2]).all(-1)[100:, 400:-250].any()
    page.keyboard.press("o")
    for name in ("outlines", "entropy", "margin", "class-0"):
        page.keyboard.press("l")
        wait(page)
        page.wait_for_function("n => location.hash.includes(`layer=${n}`)", arg=name)
        assert page.input_value("#layer") == name
        assert (take_picture(page) != whole).any()
    assert page.is_visible("#ramp")
    page.keyboard.press("[")
    page.wait_for_function("() => location.hash.includes('opacity=90')")


def test_an_address_leads_back(page, server):
    show(page, server, "#x=300&y=200&width=300&layer=outlines&opacity=70&off=1.2&beside=1")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    wait(page)
    page.wait_for_timeout(500)
    address = page.evaluate("location.hash")
    picture = take_picture(page)
    show(page, server, address)
    assert page.evaluate("location.hash") == address
    again = take_picture(page)
    assert (again == picture).all(-1).mean() > 0.99
    assert page.input_value("#opacity") == "70" and page.is_checked("#beside")
    assert not page.is_checked("[data-class='1']") and page.is_checked("[data-class='0']")


def test_a_drawn_region_is_counted(page, server, root):
    labels = read_labels(root / "maps" / "drawn")
    show(page, server, "#x=300&y=200&width=500")
    page.keyboard.press("r")
    box = page.locator("#tissue").bounding_box()
    corners = [(300, 200), (800, 260), (700, 650), (350, 600)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner)
    page.mouse.up()
    page.wait_for_function("() => document.getElementById('part-title').textContent === 'Region'")
    step = 500 / box["width"] / MAP_MPP
    points = [
        (
            (BOUNDS[0] * MPP + 300) / MAP_MPP + (x - box["x"] - box["width"] / 2) * step,
            (BOUNDS[1] * MPP + 200) / MAP_MPP + (y - box["y"] - box["height"] / 2) * step,
        )
        for x, y in corners
    ]
    rows, columns = np.indices(labels.shape)
    inside = shapely.contains_xy(shapely.Polygon(points), columns + 0.5, rows + 0.5)
    counts = np.bincount(labels[inside], minlength=5)[:4]
    shown = [page.inner_text(f"[data-part='{index}']") for index in range(4)]
    expected = counts / counts.sum()
    for text, share in zip(shown, expected, strict=True):
        assert float(text.removesuffix(" %")) == pytest.approx(100 * share, abs=0.11)
    page.keyboard.press("Escape")
    page.wait_for_function(
        "() => document.getElementById('part-title').textContent === 'On screen'"
    )


def test_the_readout_says_class_and_place(page, server, root):
    labels = read_labels(root / "maps" / "drawn")
    show(page, server, "#x=300&y=200&width=60&opacity=0")
    box = page.locator("#tissue").bounding_box()
    names = page.evaluate("TissueMap.state.classes.map((each) => each.name)")
    for x, y in [(0.31, 0.42), (0.5, 0.77), (0.66, 0.25)]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_timeout(300)
        text = page.inner_text("#readout")
        um_x = 300 + (x - 0.5) * 60
        um_y = 200 + (y - 0.5) * 60 * box["height"] / box["width"]
        at = [int(v) for v in re.search(r"(-?\d+), (-?\d+) µm", text).groups()]
        assert at == pytest.approx([um_x, um_y], abs=1.01)
        column = int((BOUNDS[0] * MPP + um_x) / MAP_MPP)
        row = int((BOUNDS[1] * MPP + um_y) / MAP_MPP)
        around = labels[row - 1 : row + 2, column - 1 : column + 2].ravel().tolist()
        expected = {([*names, "no class"])[value] for value in around}
        assert any(text.startswith(name) for name in expected)


def test_a_server_that_is_started_again_goes_on(browser, root):
    server = Server(root / "maps")
    page = browser.new_page(viewport={"width": 420, "height": 800})
    page.goto(f"http://127.0.0.1:{server.port}/enter/{TOKEN}")
    page.wait_for_url("**/maps/")
    show(page, server, "#x=300&y=200&width=300")
    server.stop()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => !document.getElementById('message').hidden")
    again = Server(root / "maps", server.port)
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.getElementById('message').hidden")
    page.reload()
    wait(page)
    page.close()
    again.stop()


def test_corrections_outlive_the_server(browser, root, tmp_path):
    server = Server(root / "maps", corrections=tmp_path / "corrections")
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"http://127.0.0.1:{server.port}/enter/{TOKEN}")
    page.wait_for_url("**/maps/")
    show(page, server, "#x=300&y=200&width=400")
    box = page.locator("#tissue").bounding_box()

    def correct(x, y, keys, saved):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.keyboard.press("c")
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_function(
            "text => document.getElementById('corrected').textContent === text", arg=saved
        )

    correct(0.25, 0.5, ["1", "3", "3", "Enter"], "Saved: tumor")
    correct(0.5, 0.5, ["Enter", "Enter"], "Saved: none of them")
    correct(0.75, 0.5, ["2", "?"], "Saved: cannot tell")
    page.wait_for_function("() => document.querySelectorAll('.correction').length === 3")
    listed = server.pages.visit().get("/corrections/drawn").json()
    assert [each["answer"] for each in listed] == ["1000", "0000", "?"]
    x = BOUNDS[0] + (300 - 0.25 * 400) / MPP  # where it was pointed at, by the address
    assert listed[0]["x"] == pytest.approx(x, abs=2)
    server.stop()
    page.mouse.move(box["x"] + 100, box["y"] + 500)
    page.keyboard.press("c")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.getElementById('corrected').textContent.startsWith('Not saved')"
    )
    again = Server(root / "maps", server.port, tmp_path / "corrections")
    page.keyboard.press("Enter")  # the answer is still there
    page.wait_for_function("() => document.querySelectorAll('.correction').length === 4")
    page.click("#undo")
    page.wait_for_function("() => document.querySelectorAll('.correction').length === 3")
    listed = again.pages.visit().get("/corrections/drawn").json()
    assert [each["answer"] for each in listed] == ["1000", "0000", "?"]
    page.close()
    again.stop()


def test_hostile_names_do_nothing(page, server):
    from urllib.parse import quote

    show(page, server, "", quote(NASTY))
    assert page.inner_text("h1") == NASTY
    assert page.locator("h1 b").count() == 0
    time.sleep(0.2)
