"""Masks to shapes of labelme and QuPath, and back."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data import patch_files
from data.synthetic import DATASET
from tests.polygons.polygon_runs import EXCLUDED, list_files, read_mask, run
from tests.polygons.test_drawn_shapes import draw_blobs
from wsss_jax.errors import InputError


@pytest.fixture
def masks(tmp_path):
    """Two masks with their images: `masks/<name>.png`, `images/<name>.png`."""
    for number, name in enumerate(("a", "b")):
        mask = draw_blobs(number, 96)
        mask[mask == 3] = EXCLUDED
        for folder in ("masks", "images"):
            (tmp_path / folder).mkdir(exist_ok=True)
        patch_files.write_mask(tmp_path / "masks" / f"{name}.png", mask, DATASET)
        pixels = np.stack([mask * 40] * 3, axis=-1)
        patch_files.write_image(tmp_path / "images" / f"{name}.png", pixels)
    return tmp_path / "masks"


@pytest.mark.parametrize("to", ["labelme", "geojson"])
@pytest.mark.parametrize("write_images", [True, False])
def test_round_trips(masks, tmp_path, to, write_images):
    images = masks.parent / "images"
    exact = {"min_area": 0.0, "simplify": 0.0, "to": to, "images": images}
    run(masks, tmp_path / "shapes", write_images=write_images, **exact)
    fields = {} if to == "labelme" else {"images": images}
    run(tmp_path / "shapes" / to, tmp_path / "back", **fields)
    for name in ("a.png", "b.png"):
        mask = read_mask(tmp_path / "back/masks" / name)
        np.testing.assert_array_equal(mask, read_mask(masks / name))
        pixels = patch_files.read_image(tmp_path / "back/images" / name, None)
        np.testing.assert_array_equal(pixels, patch_files.read_image(images / name, None))


@pytest.mark.parametrize("to", ["labelme", "geojson"])
def test_simplified_round_trips_stay_within_the_tolerance(masks, tmp_path, to):
    images = masks.parent / "images"
    run(masks, tmp_path / "shapes", to=to, images=images, min_area=4.0, simplify=1.0)
    run(tmp_path / "shapes" / to, tmp_path / "back", images=images)
    for name in ("a.png", "b.png"):
        before, after = read_mask(masks / name), read_mask(tmp_path / "back/masks" / name)
        assert 0 < (before != after).mean() < 0.04


def test_what_qupath_and_labelme_open(masks, tmp_path):
    run(masks, tmp_path / "q", to="geojson")
    features = json.loads((tmp_path / "q/geojson/a.geojson").read_text())["features"]
    assert features and len({feature["id"] for feature in features}) == len(features)
    for feature in features:
        properties = feature["properties"]
        assert properties["objectType"] == "annotation" and not properties["isLocked"]
        assert properties["classification"]["name"] in DATASET.classes
        assert properties["measurements"] == {}
    assert any(len(feature["geometry"]["coordinates"]) > 1 for feature in features)  # holes
    run(masks, tmp_path / "l", to="labelme", images=tmp_path / "images", write_images=False)
    content = json.loads((tmp_path / "l/labelme/a.json").read_text())
    assert (content["imageWidth"], content["imageHeight"]) == (96, 96)
    assert (tmp_path / "l/labelme" / content["imagePath"]).resolve() == tmp_path / "images/a.png"
    assert {shape["label"] for shape in content["shapes"]} <= {*DATASET.classes, "__ignore__"}


def test_bad_masks_cost_themselves_only(masks, tmp_path):
    Image.fromarray(np.full((96, 96), 77, np.uint8)).save(masks / "c.png")
    (masks / "d.png").write_bytes((masks / "a.png").read_bytes()[:99])
    shutil.copy(masks / "a.png", masks / "e.png")
    patch_files.write_image(tmp_path / "images/e.png", np.zeros((9, 9, 3), np.uint8))
    shutil.copy(masks / "a.png", masks / "f.png")
    with pytest.raises(InputError, match=r"4 of 6 files failed.*: c\.png; d\.png; e\.png; f\.png"):
        run(masks, tmp_path / "run", to="labelme", images=tmp_path / "images")
    lines = (tmp_path / "run/failed.txt").read_text().splitlines()
    for line, words in zip(
        lines, ["mask value 77", "damaged", "another size than its image", "no image called f"]
    ):
        assert words in line
    assert len(list_files(tmp_path / "run")) == 4
    with pytest.raises(InputError, match="its classes are not known; name them by"):
        run(masks / "a.png", tmp_path / "other", to="geojson", dataset="")
