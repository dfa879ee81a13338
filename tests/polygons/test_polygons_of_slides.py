"""Annotations of slides to masks, and maps of slides to annotations."""

import dataclasses
import shutil

import numpy as np
import pytest
import tifffile

from data import patch_files
from data.dataset import load_dataset
from data.synthetic import DATASET
from data.synthetic_slides import wrap_array, write_pyramid
from tests.polygons.drawing_files import (
    make_box,
    make_feature,
    write_geojson,
)
from tests.polygons.polygon_runs import EXCLUDED, STROMA, TUMOR, list_files, read_mask, run
from tests.slides.slide_runs import segment_by_color, write_slide
from wsss_jax.errors import InputError
from wsss_jax.polygons import to_masks
from wsss_jax.slides.reading.slide import open_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of .5 micrometers per pixel, 300 x 200 pixels."""
    path = tmp_path_factory.mktemp("slide") / "s.svs"
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    write_pyramid(path, wrap_array(pixels), 0.5, (1, 2), "aperio", "deflate")
    return path


def test_a_slide_and_its_regions(slide, tmp_path):
    features = [
        make_feature("ROI", [make_box(40, 20, 100, 80)]),
        make_feature(TUMOR, [make_box(20, 20, 60, 60), make_box(44, 24, 52, 32)]),
        make_feature("ROI", [[[150, 50], [250, 50], [150, 150], [150, 50]]]),
        make_feature(STROMA, [make_box(150, 50, 250, 150)]),
    ]
    path = write_geojson(tmp_path / "s.svs.geojson", features)
    stroma = DATASET.classes.index(STROMA)
    images = {"images": slide.parent}
    run(path, tmp_path / "whole", ignored=("ROI",), **images)
    mask = read_mask(tmp_path / "whole/masks/s.png")
    expected = np.full((200, 300), EXCLUDED, np.uint8)
    expected[20:60, 20:60] = 0
    expected[24:32, 44:52] = EXCLUDED
    expected[50:150, 150:250] = stroma
    np.testing.assert_array_equal(mask, expected)
    run(path, tmp_path / "coarse", ignored=("ROI",), mpp=1.0, **images)
    np.testing.assert_array_equal(read_mask(tmp_path / "coarse/masks/s.png"), expected[::2, ::2])
    assert load_dataset("", tmp_path / "coarse").mpp == 1.0
    run(path, tmp_path / "regions", region="ROI", mpp=1.0, **images)
    names = {"s_x40_y20.png", "s_x150_y50.png"}
    assert {each.name for each in (tmp_path / "regions/masks").iterdir()} == names
    first = read_mask(tmp_path / "regions/masks/s_x40_y20.png")
    np.testing.assert_array_equal(first, expected[20:80:2, 40:100:2])
    second = read_mask(tmp_path / "regions/masks/s_x150_y50.png")
    assert second.shape == (50, 50)
    assert second[0, 0] == stroma and second[40, 40] == EXCLUDED  # outside of the triangle
    whole = patch_files.read_image(tmp_path / "coarse/images/s.png", None)
    part = patch_files.read_image(tmp_path / "regions/images/s_x40_y20.png", None)
    np.testing.assert_array_equal(part, whole[10:40, 20:50])


def test_regions_that_begin_at_one_corner(slide, tmp_path):
    boxes = (make_box(40, 20, 100, 80), make_box(40, 20, 60, 60))
    path = write_geojson(tmp_path / "s.geojson", [make_feature("ROI", [box]) for box in boxes])
    with pytest.raises(InputError, match=r"images/s_x40_y20\.png would be written twice; move one"):
        run(path, tmp_path / "run", region="ROI", images=slide)
    assert not list_files(tmp_path / "run")


def test_a_slide_that_does_not_state_its_resolution(tmp_path):
    slide = write_slide(tmp_path / "s.svs", mpp=None)
    path = write_geojson(tmp_path / "s.geojson", [make_feature(TUMOR, [make_box(0, 0, 64, 32)])])
    with pytest.raises(InputError, match=r"s\.geojson: .*s\.svs: .*set --config\.slide_mpp"):
        run(path, tmp_path / "run", images=slide, mpp=1.0)
    (tmp_path / "mpp.csv").write_text("slide,mpp\ns.svs,0.25\n")
    run(path, tmp_path / "run", images=slide, mpp=1.0, mpp_table=str(tmp_path / "mpp.csv"))
    assert np.count_nonzero(read_mask(tmp_path / "run/masks/s.png") == 0) == 16 * 8


def test_a_scanned_area_counts_from_its_corner(slide, tmp_path, monkeypatch):
    def open_scanned(path, mpp):
        return dataclasses.replace(open_slide(path, mpp), bounds=(30, 20, 200, 150))

    monkeypatch.setattr(to_masks, "open_slide", open_scanned)
    path = write_geojson(tmp_path / "s.geojson", [make_feature(TUMOR, [make_box(0, 0, 10, 10)])])
    run(path, tmp_path / "run", images=slide)
    expected = np.full((200, 300), EXCLUDED, np.uint8)
    expected[20:30, 30:40] = 0
    np.testing.assert_array_equal(read_mask(tmp_path / "run/masks/s.png"), expected)


def test_slides_that_cannot_be_masked(slide, tmp_path):
    def expect(words, feature, name="s", **fields):
        path = write_geojson(tmp_path / f"{name}.geojson", [feature])
        with pytest.raises(InputError, match=words):
            run(path, tmp_path / "run", **{"images": slide, **fields})
        assert not list_files(tmp_path / "run")

    good = make_feature(TUMOR, [make_box(0, 0, 9, 9)])
    expect("there is no image called t", good, name="t")
    expect(
        r"no class has the label of feature 1 \(without class\)",
        make_feature(None, [make_box(0, 0, 9, 9)]),
    )
    expect("no shape is called 'ROI'", good, region="ROI")
    expect(
        "lies outside of the image, which ends at x 300, y 200",
        make_feature(TUMOR, [make_box(400, 0, 409, 9)]),
    )
    expect("over twice the 0.1", good, mpp=0.1)
    expect("has no file that ends like a slide", good, images="")
    (tmp_path / "b").mkdir()
    shutil.copy(slide, tmp_path / "b/s.svs")
    expect("could be its image", good, images=f"{slide},{tmp_path / 'b'}")


def test_a_mask_that_is_too_large(slide, tmp_path, monkeypatch):
    monkeypatch.setattr(to_masks, "_LARGEST", 50_000)
    path = write_geojson(tmp_path / "s.geojson", [make_feature(TUMOR, [make_box(0, 0, 9, 9)])])
    with pytest.raises(
        InputError, match=r"a mask of 300x200 pixels is too large; choose a coarser"
    ):
        run(path, tmp_path / "run", images=slide)


def test_maps_of_slides_to_correct(tmp_path):
    (tmp_path / "slides").mkdir()
    slide = write_slide(tmp_path / "slides" / "s.svs")
    changes = {"mpp": 1.0, "tissue.min_tissue": 500.0}
    segment_by_color(slide, tmp_path / "maps" / "s", **changes)
    run(
        tmp_path / "maps", tmp_path / "shapes", to="geojson", dataset="", min_area=0.0, simplify=0.0
    )
    run(tmp_path / "shapes/geojson", tmp_path / "back", images=slide, mpp=1.0, write_images=False)
    label_map = tifffile.imread(tmp_path / "maps/s/label_map.ome.tif", level=0)
    assert len(np.unique(label_map)) > 2
    np.testing.assert_array_equal(read_mask(tmp_path / "back/masks/s.png"), label_map)
    with pytest.raises(InputError, match="labelme opens no slides"):
        run(tmp_path / "maps/s", tmp_path / "no", to="labelme", images=slide)
    content = (tmp_path / "maps/s/label_map.ome.tif").read_bytes()
    (tmp_path / "maps/s/label_map.ome.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"label_map\.ome\.tif: missing or damaged"):
        run(tmp_path / "maps/s", tmp_path / "damaged", to="geojson")
    (tmp_path / "maps/s/slide.json").unlink()
    with pytest.raises(InputError, match="no finished map"):
        run(tmp_path / "maps/s", tmp_path / "unfinished", to="geojson")
