"""A workdir with the maps of drawn slides, and the pages that show them."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import tifffile
from starlette.testclient import TestClient

from data.synthetic import DATASET
from data.synthetic_slides import draw_section, write_pyramid
from tests.labels.correction_tools import ORIGIN as ORIGIN_OF_PATCHES
from tests.slides.slide_runs import segment_by_color
from wsss_jax.labels.corrections import open_corrections
from wsss_jax.report.colors import make_legend
from wsss_jax.slides.outputs import cohort
from wsss_jax.slides.viewing.collection import Collection
from wsss_jax.web import security
from wsss_jax.web.access import Access
from wsss_jax.web.corrections import CorrectionPages
from wsss_jax.web.pages import make_app
from wsss_jax.web.viewer import Viewer

ORIGIN = "http://127.0.0.1:8766"
TOKEN = "t" * 32
MPP, MAP_MPP = 0.25, 0.7  # 2.8 pixels of the slide are one of the map
BOUNDS = [40, 30, 2400, 1700]  # where the scanned area is said to be
NASTY = "a <b>\"&' é"  # name of a slide


def make_maps(root: Path, name: str = "drawn", size: tuple[int, int] = (2600, 1900)) -> Path:
    """Draws a slide and makes its map; returns the folder of the map."""
    slide = root / "slides" / f"{name}.tif"
    slide.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(slide, draw_section(*size), MPP, levels=(1, 4))
    folder = root / "maps" / name
    segment_by_color(slide, folder, mpp=MAP_MPP, probabilities=True)
    cohort.write_cohort(root / "maps", make_legend(DATASET, "dataset"), name, "", [name], [])
    return folder


def change_summary(folder: Path, **changes) -> None:
    path = folder / "slide.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read_labels(folder: Path) -> np.ndarray:
    return tifffile.imread(folder / "label_map.ome.tif", series=0, level=0)


def read_probabilities(folder: Path) -> np.ndarray:
    return tifffile.imread(folder / "probabilities.ome.tif", series=0, level=0)


class Pages:
    """The pages of a workdir, asked as a browser asks."""

    def __init__(self, maps: Path, slides: Path | None = None, corrections: Path | None = None):
        self._stack = ExitStack()
        self.collection = Collection(maps, slides)
        self._stack.callback(self.collection.close)
        access = Access("view_8766", lambda: [(TOKEN, "me")])
        routes, field = [], None
        if corrections is not None:
            field = ORIGIN_OF_PATCHES.field
            opened = self._stack.enter_context(open_corrections(corrections, ORIGIN_OF_PATCHES))
            pages = CorrectionPages(opened, self.collection.find_slide, access.identify)
            routes = pages.list_routes()
        viewer = Viewer(maps, self.collection, access, field)
        self.app = make_app([*viewer.list_routes(), *routes], security.list_hosts("127.0.0.1"))

    def close(self) -> None:
        self._stack.close()

    def visit(self, entered: bool = True) -> TestClient:
        client = TestClient(self.app, base_url=ORIGIN, headers={"origin": ORIGIN})
        if entered:
            assert client.get(f"/enter/{TOKEN}").status_code == 200
        return client


def read_state(html: str) -> dict:
    """Reads what a page has been told."""
    import html as entities

    return json.loads(entities.unescape(re.search(r'data-state="([^"]*)"', html)[1]))
