"""Pages of maps that need no server."""

import shutil

import cv2
import numpy as np
import pytest

from configs import base_slides
from tests.web.drawn_maps import NASTY, change_summary, make_maps, read_labels, read_state
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.files import UNFINISHED
from wsss_jax.slides.viewing.collection import Collection
from wsss_jax.web.viewer import draw_tile

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PLACES = [
    {
        "kind": "largest_region",
        "text": "look <b>here</b>",
        "box": [100, 200, 500, 400],
        "value": 1.0,
        "center": [350, 400],
    }
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("copies")
    for name in ("drawn", NASTY):
        change_summary(make_maps(root, name), places=PLACES)
    export(root, root / "copy")
    return root


def export(root, out, **changes):
    config = base_slides.view(str(root / "maps"))
    config.export = str(out)
    config.update(changes)
    config_lib.validate(config)
    jobs.run(config, root / "workdir")


def list_files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_tile_of_every_level_is_there(root):
    copy = root / "copy" / "drawn"
    state = read_state((copy / "view.html").read_text())
    collection, count = Collection(root / "maps"), 0
    with collection.use("drawn") as opened:
        for name, layer in [("tissue", state["tissue"]), *state["layers"].items()]:
            for level in range(layer["last"] + 1):
                sides = [side >> (layer["last"] - level) for side in layer["size"]]
                columns, rows = (-(-side // layer["side"]) for side in sides)
                for column in range(columns):
                    for row in range(rows):
                        ending = "jpg" if name == "tissue" else "png"
                        path = copy / "tiles" / name / str(level) / f"{column}_{row}.{ending}"
                        assert path.read_bytes() == draw_tile(opened, name, level, column, row)
                        count += 1
    collection.close()
    assert count == len(list((copy / "tiles").rglob("*.*"))) > 20
    assert set(state["layers"]) == {"classes", "outlines"}
    place = cv2.imread(str(copy / "places" / "0.jpg"))
    assert place.shape[:2] == (192, 240)  # 500 x 400 pixels of the slide


def test_an_interrupted_copy_is_continued(root, tmp_path):
    shutil.copytree(root / "copy", tmp_path / "copy")
    copy = tmp_path / "copy" / "drawn"
    whole = list_files(copy)
    tiles = sorted((copy / "tiles").rglob("*.*"))
    for path in tiles[::3]:
        path.unlink()
    (copy / "view.html").unlink()
    (copy / "tiles" / f"{UNFINISHED}x").mkdir()
    (tmp_path / "new" / "drawn" / f"{UNFINISHED}x").mkdir(parents=True)  # killed at its beginning
    for name in ("copy", "new"):
        export(root, tmp_path / name, export_maps=("drawn",))
        assert list_files(tmp_path / name / "drawn") == whole
        assert not list((tmp_path / name).rglob(".*"))


def test_a_coarser_copy_has_fewer_tiles_of_the_same_place(root, tmp_path):
    export(root, tmp_path / "copy", export_maps=("drawn",), export_mpp=1.0)
    fine, coarse = (
        read_state((folder / "drawn" / "view.html").read_text())
        for folder in (root / "copy", tmp_path / "copy")
    )
    assert fine["tissue"]["mpp"] == 0.25 and coarse["tissue"]["mpp"] == 1.0
    width = [state["tissue"]["size"][0] * state["tissue"]["mpp"] for state in (fine, coarse)]
    assert width[0] == width[1]
    assert not (
        tmp_path / "copy" / "drawn" / "tiles" / "tissue" / str(fine["tissue"]["last"])
    ).exists()
    with pytest.raises(InputError, match="at another resolution"):
        export(root, tmp_path / "copy", export_maps=("drawn",))


def test_other_files_and_other_maps_are_refused(root, tmp_path):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "mine.txt").write_text("x")
    (tmp_path / "drawn" / f"{UNFINISHED}x").mkdir()  # another job may be writing it
    with pytest.raises(InputError, match="is not empty: name another"):
        export(root, tmp_path, export_maps=("drawn",))
    with pytest.raises(InputError, match="no finished map 'none'"):
        export(root, tmp_path, export_maps=("none",))
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    with pytest.raises(InputError, match="name the workdir of the job 'segment'"):
        export(tmp_path, tmp_path / "copy")


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("name", ["drawn", NASTY])
def test_the_page_opens_as_a_file(root, name):
    playwright = pytest.importorskip("playwright.sync_api")
    labels = read_labels(root / "maps" / name)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        url = (root / "copy" / name / "view.html").resolve().as_uri()
        page.goto(f"{url}#x=320&y=240&width=200&opacity=100")
        page.wait_for_function("() => TissueMap.stage && TissueMap.stage.isStill()")
        page.wait_for_timeout(300)
        assert page.inner_text("h1") == name
        palette = page.evaluate("TissueMap.state.classes.map((each) => each.color)")
        box = page.locator("#map").bounding_box()
        for is_on in (True, False):
            picture = page.screenshot(clip=box)
            picture = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            found = [(picture == color).all(-1).any() for color in palette]
            row, column = int(240 / 0.7), int(320 / 0.7)
            part = labels[row - 60 : row + 60, column - 90 : column + 90]
            if is_on:
                assert found == [bool((part == value).any()) for value in range(len(palette))]
                page.keyboard.press("1")
                page.wait_for_timeout(300)
        assert not found[0]
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(300)
        assert "320, 240 µm" in page.inner_text("#readout").replace("319,", "320,")
        page.goto((root / "copy" / name / "report.html").resolve().as_uri())
        assert page.title().startswith(name)
        browser.close()
    assert problems == []
