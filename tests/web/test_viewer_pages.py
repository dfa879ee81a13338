"""The pages of maps, asked as a browser asks: tiles, positions, counts, and who may see them."""

import html as html_lib
import html.parser
import re
import shutil
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import shapely

from data.synthetic import DATASET
from tests.web.drawn_maps import (
    BOUNDS,
    MAP_MPP,
    MPP,
    NASTY,
    Pages,
    change_summary,
    make_maps,
    read_labels,
    read_probabilities,
    read_state,
)
from wsss_jax.report.colors import make_legend
from wsss_jax.report.slide_pictures import find_edges
from wsss_jax.slides.outputs import attention, cohort
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View
from wsss_jax.slides.viewing import counting
from wsss_jax.slides.viewing.grid import SIDE
from wsss_jax.slides.viewing.map_layers import NOTHING, compute_entropy, compute_margin
from wsss_jax.slides.viewing.pictures import encode_tissue

SCALE = MAP_MPP / MPP


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("viewer")
    for name in ("drawn", NASTY):
        folder = make_maps(root, name)
        change_summary(folder, bounds=BOUNDS)
    return root


@pytest.fixture(scope="module")
def pages(root):
    pages = Pages(root / "maps")
    yield pages
    pages.close()


@pytest.fixture
def client(pages):
    return pages.visit()


def decode(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def read_layer(client, state, name, level):
    """Reads a whole level of a layer from its tiles."""
    layer = state["layers"][name]
    width, height = (side >> (layer["last"] - level) for side in layer["size"])
    rows = []
    for row in range(-(-height // SIDE)):
        tiles = []
        for column in range(-(-width // SIDE)):
            answer = client.get(f"/maps/drawn/tiles/{name}/{level}/{column}_{row}.png")
            assert answer.status_code == 200, answer.text
            tiles.append(decode(answer.content))
        rows.append(np.hstack(tiles))
    pixels = np.vstack(rows)
    assert pixels.shape[:2] == (height, width)
    return pixels


@pytest.fixture
def state(client):
    return read_state(client.get("/maps/drawn/view.html").text)


def pad(labels, shape, value):
    padded = np.full(shape, value, labels.dtype)
    padded[: labels.shape[0], : labels.shape[1]] = labels
    return padded


def test_every_level_of_classes_is_the_label_map(client, state, root):
    labels = read_labels(root / "maps" / "drawn")
    excluded = len(state["classes"])
    assert set(np.unique(labels)) > {0, excluded}
    last = state["layers"]["classes"]["last"]
    assert last >= 1
    for level in range(last + 1):
        found = read_layer(client, state, "classes", level)
        step = 2 ** (last - level)
        expected = pad(labels[::step, ::step], found.shape, excluded)
        np.testing.assert_array_equal(found, expected)


def test_outlines_are_thin_at_the_resolution_of_the_slide(client, state, root):
    labels = read_labels(root / "maps" / "drawn")
    layer, excluded = state["layers"]["outlines"], len(state["classes"])
    assert layer["mpp"] == pytest.approx(MAP_MPP / 2)  # 4 would be finer than the slide
    for level in range(layer["last"] + 1):
        step = 2 ** (layer["last"] - level)
        fine = labels.repeat(2, 0).repeat(2, 1) if step == 1 else labels[:: step // 2, :: step // 2]
        edges = find_edges(pad(fine, (len(fine) + 1, len(fine[0]) + 1), excluded), excluded)
        found = read_layer(client, state, "outlines", level)
        expected = np.where(edges[:-1, :-1], fine, np.uint8(excluded))
        np.testing.assert_array_equal(found, pad(expected, found.shape, excluded))


def test_probabilities_entropy_and_margin_are_those_that_are_stored(client, state, root):
    folder = root / "maps" / "drawn"
    labels, probabilities = read_labels(folder), read_probabilities(folder) / 255
    level = state["layers"]["entropy"]["last"]
    ordered = np.sort(probabilities / probabilities.sum(0).clip(1e-9), axis=0)
    shares = np.where(ordered > 0, ordered, 1)
    expected = {
        "class-1": probabilities[1],
        "entropy": -(ordered * np.log(shares)).sum(0) / np.log(len(ordered)),
        "margin": ordered[-1] - ordered[-2],
    }
    is_class = labels != len(state["classes"])
    for name, values in expected.items():
        found = read_layer(client, state, name, level)[: labels.shape[0], : labels.shape[1]]
        assert (found[~is_class] == NOTHING).all()
        assert np.abs(found[is_class] / 254 - values[is_class]).max() <= 0.51 / 254


def test_measures_of_doubt_at_their_ends():
    weights = np.zeros((4, 1, 3), np.float32)
    weights[2, 0, 0] = 0.3  # one class alone, the gate has taken the others away
    weights[:, 0, 1] = 0.25
    np.testing.assert_allclose(compute_entropy(weights)[0], [0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(compute_margin(weights)[0], [1, 0, 0], atol=1e-6)
    assert compute_margin(np.ones((1, 2, 2), np.float32)).tolist() == [[1, 1], [1, 1]]


def test_tissue_is_the_slide_at_every_level(client, pages):
    with pages.collection.use("drawn") as opened, open_slide(opened.slide) as slide:
        for level in range(opened.tissue.grid.last + 1):
            view = View(slide, MPP * opened.tissue.grid.get_step(level))
            expected = view.read(0, 0, view.width, view.height).astype(int)
            for column, row in opened.tissue.grid.list_tiles(level):
                box = opened.tissue.grid.locate(level, column, row)
                tile = opened.tissue.read(level, box)
                path = f"/maps/drawn/tiles/tissue/{level}/{column}_{row}.jpg"
                assert client.get(path).content == encode_tissue(tile)
                # Without the pixels that end with the slide, of which some are white.
                part = expected[box.top :, box.left :][: box.height, : box.width][:-1, :-1]
                inside = tile[: part.shape[0], : part.shape[1]]
                assert inside.shape == part.shape and expected.std() > 10
                assert np.abs(inside - part).max() <= 1  # means are rounded in another way


def test_a_point_names_its_class_and_probabilities(client, state, root):
    folder = root / "maps" / "drawn"
    labels, probabilities = read_labels(folder), read_probabilities(folder)
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(0, (2600, 1900), (50, 2)):
        found = client.get(f"/maps/drawn/point?x={x}&y={y}").json()
        column, row = int(x / SCALE), int(y / SCALE)
        assert found["pixel"] == [column, row]
        if row < labels.shape[0] and column < labels.shape[1]:
            assert found["label"] == labels[row, column]
            if found["probabilities"]:
                expected = probabilities[:, row, column] / 255
                np.testing.assert_allclose(found["probabilities"], expected)
    outside = client.get("/maps/drawn/point?x=-5&y=1e8").json()
    assert outside["label"] == len(state["classes"]) and outside["probabilities"] is None


@pytest.mark.parametrize("seed", range(4))
def test_a_region_counts_the_pixels_whose_centers_are_inside(client, state, root, seed):
    labels = read_labels(root / "maps" / "drawn")
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radius = rng.uniform(200, 1500, 12)  # of which a part is outside of the slide
    corners = [1300, 900] + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    answer = client.post("/maps/drawn/count", json={"corners": corners.tolist()})
    found = answer.json()
    y, x = np.indices(labels.shape)
    inside = shapely.contains_xy(shapely.Polygon(corners), (x + 0.5) * SCALE, (y + 0.5) * SCALE)
    expected = np.bincount(labels[inside], minlength=len(state["classes"]) + 1)
    assert found["pixels"] == expected.tolist() and found["step"] == 1
    np.testing.assert_allclose(found["mm2"], expected * (MAP_MPP / 1000) ** 2)


def test_a_large_region_is_counted_at_a_coarser_level(client, root, monkeypatch):
    monkeypatch.setattr(counting, "MOST", 100_000)
    labels = read_labels(root / "maps" / "drawn")
    corners = [[0, 0], [2600, 0], [2600, 1900], [0, 1900]]
    found = client.post("/maps/drawn/count", json={"corners": corners}).json()
    assert found["step"] == 2
    expected = 4 * np.bincount(labels[::2, ::2].ravel(), minlength=len(found["pixels"]))
    assert found["pixels"] == expected.tolist()


@pytest.mark.parametrize(
    ("corners", "pixels"),
    [
        ([[0, 0], [280, 280], [280, 0], [0, 280]], 5000),  # crosses itself: two triangles
        ([[0, 0], [0, 0], [280, 280]], 0),  # a line
        ([[-900, -900], [-800, -900], [-800, -800]], 0),  # beside the slide
    ],
)
def test_odd_regions(client, corners, pixels):
    found = client.post("/maps/drawn/count", json={"corners": corners}).json()
    assert sum(found["pixels"]) == pytest.approx(pixels, abs=0.03 * pixels)


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"{}",
        b'{"corners": 3}',
        b'{"corners": [[0, 0], [1, 1]]}',
        b'{"corners": [[0, 0], [1, 1], ["a", 2]]}',
        b'{"corners": [[0, 0], [1, 1], [NaN, 2]]}',
        b'{"corners": [[0, 0], [1, 1], [1e300, 2]]}',
        b'{"corners": [' + b"[0, 0], " * 3000 + b"[0, 0]]}",
    ],
    ids=range(9),
)
def test_what_is_no_region_is_refused(client, body):
    answer = client.post("/maps/drawn/count", content=body)
    assert answer.status_code == 400 and len(answer.text.splitlines()) == 1


def test_nobody_sees_anything_without_an_address(pages):
    stranger = pages.visit(entered=False)
    paths = ["", "maps/", "maps/drawn/view.html", "maps/drawn/report.html", "maps/drawn/areas.csv"]
    paths += ["maps/drawn/tiles/classes/0/0_0.png", "maps/drawn/point?x=1&y=1"]
    paths += ["maps/drawn/places/0.jpg"]
    for path in paths:
        assert stranger.get(f"/{path}").status_code == 401, path
    assert stranger.post("/maps/drawn/count", json={"corners": []}).status_code == 401
    assert stranger.get("/enter/" + "x" * 32).status_code == 401
    other_page = {"origin": "http://evil.example"}
    answer = pages.visit().post("/maps/drawn/count", json={"corners": []}, headers=other_page)
    assert answer.status_code == 403
    answer = pages.visit().get("/maps/", headers={"host": "evil.example"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "maps/none/view.html",
        "maps/%2e%2e/view.html",
        "maps/..%2fslides/view.html",
        "maps/drawn%00/view.html",
        "maps/drawn/..%2f..%2fslides%2fdrawn.tif",
        "maps/drawn/parts",
        "maps/drawn/tiles/none/0/0_0.png",
        "maps/drawn/tiles/class-9/0/0_0.png",
        "maps/drawn/tiles/classes/9/0_0.png",
        "maps/drawn/tiles/classes/0/9_0.png",
        "maps/drawn/tiles/classes/0/-1_0.png",
        "maps/drawn/tiles/classes/0/0_0.gif",
        "maps/drawn/places/99.jpg",
        "static/../viewer.py",
    ],
)
def test_what_is_not_there_is_not_found(client, path):
    answer = client.get(f"/{path}")
    assert answer.status_code == 404 and "Traceback" not in answer.text


class _Scripts(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.inline = [], []

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        if tag == "script":
            self.sources.append(names.get("src"))
        self.inline += [name for name in names if name.startswith("on")]


def test_a_hostile_name_is_only_a_name(client):
    answer = client.get(f"/maps/{quote(NASTY)}/view.html")
    page = _Scripts()
    page.feed(answer.text)
    assert page.inline == [] and all(source.startswith("/static/") for source in page.sources)
    assert read_state(answer.text)["name"] == NASTY
    assert "<b>" not in answer.text
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    for source in page.sources:
        assert client.get(source).status_code == 200


def test_files_of_the_report_are_sent_and_run_only_known_scripts(client, root):
    for path in ("drawn/areas.csv", "areas.csv", "cohort.csv"):
        assert client.get(f"/maps/{path}").text.startswith("\ufeffslide,")
    assert client.get("/maps/drawn").status_code == 404
    assert client.get("/", follow_redirects=False).headers["location"] == "/maps/"
    for path in ("drawn/report.html", ""):
        answer = client.get(f"/maps/{path}")
        assert len(re.findall(r"<script>", answer.text)) == 1
        assert len(_list_allowed(answer)) == 1
    report = root / "maps" / "drawn" / "report.html"
    whole = report.read_text()
    report.write_text(whole.replace("</body>", "<script>alert(1)</script></body>"))
    assert len(_list_allowed(client.get("/maps/drawn/report.html"))) == 1
    report.write_text(whole)


def test_maps_without_a_page_of_their_cohort_are_listed(root, tmp_path):
    shutil.copytree(root / "maps", tmp_path / "maps")
    (tmp_path / "maps" / "index.html").unlink()
    pages = Pages(tmp_path / "maps")
    client = pages.visit()
    page = client.get("/maps/").text
    links = [html_lib.unescape(link) for link in re.findall(r'href="(\./[^"]+)"', page)]
    assert len(links) == 4 and "<b>" not in page
    for link in links:
        assert client.get(f"/maps/{link}").status_code == 200
    pages.close()


def test_a_map_at_work_is_seen_on_the_page_of_the_cohort(root, tmp_path):
    shutil.copytree(root / "maps", tmp_path / "maps")
    of_job = cohort.Cohort(
        make_legend(DATASET, "dataset"), ["drawn", "b?", "c"], [], attention.Rules(0, 0.25, 3.5, 10)
    )
    cohort.write_cohort(tmp_path / "maps", of_job)
    pages = Pages(tmp_path / "maps")
    client = pages.visit()
    page = client.get("/maps/")
    assert re.findall(r'<object data="([^"]+)"', page.text) == ["./b%3F/preview.png"]
    assert "object-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/maps/b%3F/preview.png").status_code == 404
    (tmp_path / "maps" / "b?").mkdir()
    (tmp_path / "maps" / "b?" / "preview.png").write_bytes(b"picture")
    assert client.get("/maps/b%3F/preview.png").content == b"picture"
    assert pages.visit(entered=False).get("/maps/b%3F/preview.png").status_code == 401
    pages.close()


def _list_allowed(answer):
    """Lists what a page may run, and checks that it may load nothing."""
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    return re.findall(r"'sha256-[^']+'", re.search(r"script-src ([^;]*)", policy)[1])


def test_a_slide_that_is_gone_or_another_is_named(root, tmp_path):
    shutil.copytree(root / "maps", tmp_path / "maps")
    slides = tmp_path / "moved"
    pages = Pages(tmp_path / "maps", slides)
    state = read_state(pages.visit().get("/maps/drawn/view.html").text)
    assert state["tissue"] is None and "name its folder with --config.slides" in state["problem"]
    assert state["layers"]["classes"]
    slides.mkdir()
    (slides / "drawn.tif").write_bytes(b"another")
    pages = Pages(tmp_path / "maps", slides)
    state = read_state(pages.visit().get("/maps/drawn/view.html").text)
    assert "not the slide that the map was made of" in state["problem"]
    shutil.copy(root / "slides" / "drawn.tif", slides)
    pages = Pages(tmp_path / "maps", slides)
    client = pages.visit()
    assert read_state(client.get("/maps/drawn/view.html").text)["problem"] == ""
    assert client.get("/maps/drawn/tiles/tissue/0/0_0.jpg").status_code == 200


def test_a_map_that_is_made_again_is_shown_anew(root, tmp_path):
    shutil.copytree(root / "maps" / "drawn", tmp_path / "maps" / "drawn")
    pages = Pages(tmp_path / "maps")
    client = pages.visit()
    before = read_state(client.get("/maps/drawn/view.html").text)
    change_summary(tmp_path / "maps" / "drawn", bounds=[0, 0, 100, 100])
    after = read_state(client.get("/maps/drawn/view.html").text)
    assert before["bounds"] == BOUNDS and after["bounds"] == [0, 0, 100, 100]
    assert before["version"] != after["version"]


def test_many_maps_are_open_in_turn(root, tmp_path):
    for number in range(9):
        shutil.copytree(root / "maps" / "drawn", tmp_path / "maps" / f"m{number}")
    pages = Pages(tmp_path / "maps")
    client = pages.visit()
    first = client.get("/maps/m0/tiles/classes/0/0_0.png").content
    for _ in range(2):
        for number in range(9):
            answer = client.get(f"/maps/m{number}/tiles/classes/0/0_0.png")
            assert answer.content == first
    pages.close()
