"""Label maps of finished slides, read again."""

import json

import numpy as np
import pytest

from wsss_jax.errors import InputError
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import pyramid
from wsss_jax.slides.outputs.label_maps import open_label_map

LEGEND = Legend(("a", "b"), [(1, 2, 3), (4, 5, 6), (255, 255, 255)])
HEIGHT, WIDTH = 1100, 700
FRAME = MapFrame(WIDTH, HEIGHT, 1.0, (2.0, 4.0), (1399, 4400), (10, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished slide, whose summary has what counts here; its map is in `map.npy`."""
    folder = tmp_path_factory.mktemp("maps") / "s"
    folder.mkdir()
    labels = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), np.uint8)
    np.save(folder / "map.npy", labels)
    pyramid.write_label_map(
        folder / "label_map.ome.tif", lambda y0, y1, step: labels[y0:y1:step, ::step], FRAME, LEGEND
    )
    summary = {
        "settings": {
            "map": {"mpp": 1.0, "slide_mpp": [0.5, 0.25]},
            "output": {"classes": ["a", "b"], "palette": LEGEND.palette},
        },
        "size": [WIDTH, HEIGHT],
        "levels": [[1399, 4400]],
        "bounds": [10, 20, 1000, 1000],
        **{"files": [], "areas": [], "warnings": [], "ratios": {}, "name": "s", "file": "s.svs"},
        **{"tiles": 1, "tissue_pixels": 1},
    }
    (folder / "slide.json").write_text(json.dumps(summary))
    return folder


def test_any_rows_at_any_step(folder):
    labels = np.load(folder / "map.npy")
    with open_label_map(folder) as (read_rows, frame, legend):
        assert frame == FRAME
        assert (tuple(legend.names), legend.palette) == (LEGEND.names, LEGEND.palette)
        for y0, y1, step in [(0, HEIGHT, 1), (511, 513, 1), (7, 1090, 3), (1023, 1100, 64)]:
            np.testing.assert_array_equal(read_rows(y0, y1, step), labels[y0:y1:step, ::step])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda summary: summary.pop("size"), r"slide\.json: of an earlier version"),
        (lambda summary: summary.pop("tiles"), "no finished map of a slide"),
        (lambda summary: summary.update(size=[WIDTH, HEIGHT + 1]), "missing or damaged"),
    ],
)
def test_summaries_that_do_not_fit(folder, tmp_path, change, words):
    summary = json.loads((folder / "slide.json").read_text())
    change(summary)
    (tmp_path / "slide.json").write_text(json.dumps(summary))
    (tmp_path / "label_map.ome.tif").symlink_to(folder / "label_map.ome.tif")
    with pytest.raises(InputError, match=words), open_label_map(tmp_path):
        pass
