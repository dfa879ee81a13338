"""The area that a tissue mask covers, and the mask file of a slide."""

import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import base_slides
from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.tissue_search import find_mask_file, find_tissue
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.slide import Slide

# Level 0 is 4096 x 3072, of which 1024 x 768 at (3000, 2200) were scanned; four pixels to one.
SIZE, SCANNED = (1024, 768), (3000, 2200, 1024, 768)


def _find(tmp_path: Path, mask: np.ndarray, bounds=SCANNED, area="auto"):
    config = base_slides.segment("unused", "", "unused")
    config.tissue.source, config.tissue.mask_area = str(tmp_path), area
    Image.fromarray(mask).save(tmp_path / "a.png")
    slide = SimpleNamespace(path="a.scn", width=4096, height=3072, bounds=bounds)
    slide.is_scanned_in_part = Slide.is_scanned_in_part.fget(slide)
    view = SimpleNamespace(slide=slide, width=SIZE[0], height=SIZE[1], scale=(4.0, 4.0), mpp=2.0)
    overview = np.full((96, 128, 3), 244, np.uint8)
    tissue, note = find_tissue(config, view, overview, 8.0, tmp_path / "a.png")
    return tissue.read(0, 0, *SIZE), note


def _make_left_half(width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def _place_in_scanned_area(mask: np.ndarray) -> np.ndarray:
    """Places a mask in working pixels, stretched by a whole number."""
    whole = np.zeros(SIZE[::-1], bool)
    y, x = np.mgrid[550:742, 750:1006]
    rows = (y - 550) * mask.shape[0] // 192
    whole[y, x] = mask[rows, (x - 750) * mask.shape[1] // 256] > 0
    return whole


def test_a_mask_of_the_scanned_area(tmp_path):
    mask = _make_left_half(256, 192)
    tissue, note = _find(tmp_path, mask)
    np.testing.assert_array_equal(tissue, _place_in_scanned_area(mask))
    assert tissue.sum() == 128 * 192
    assert note.startswith("the tissue mask is taken to cover the scanned area; set ")
    assert "tissue.mask_area=slide" in note
    tissue, note = _find(tmp_path, mask, area="slide")
    assert tissue[:, :512].all() and not tissue[:, 512:].any()
    assert note == "the tissue mask is taken to cover the whole slide"


def test_a_mask_of_the_whole_slide_has_its_tissue_in_the_scanned_area(tmp_path):
    mask = np.zeros((192, 256), np.uint8)
    mask[140:180, 190:240] = 1
    tissue, note = _find(tmp_path, mask)
    np.testing.assert_array_equal(tissue, np.kron(mask, np.ones((4, 4))) > 0)
    assert "cover the whole slide; set --config.tissue.mask_area=scanned if" in note
    tissue, _ = _find(tmp_path, mask, area="scanned")
    np.testing.assert_array_equal(tissue, _place_in_scanned_area(mask))
    # Where nearly everything was scanned, the place says nothing: taken as a viewer's.
    bounds = 100, 75, 3840, 2880
    assert "cover the scanned area; set" in _find(tmp_path, mask, bounds)[1]


def test_the_shape_of_a_mask_tells_its_area_if_it_can(tmp_path):
    bounds = 3000, 1000, 500, 1000
    tissue, note = _find(tmp_path, _make_left_half(60, 120), bounds)
    assert note == "the tissue mask is taken to cover the scanned area"
    assert tissue.sum() == pytest.approx(125 * 250 / 2, rel=0.03)
    tissue, note = _find(tmp_path, _make_left_half(256, 192), bounds)
    assert note == "the tissue mask is taken to cover the whole slide" and tissue[:, :512].all()
    words = r"100 x 10 pixels, another shape than the whole slide's 1024 x 768 and the scanned area"
    with pytest.raises(InputError, match=rf"a\.png: {words}'s 125 x 250; save a mask of the whole"):
        _find(tmp_path, _make_left_half(100, 10), bounds)
    with pytest.raises(InputError, match=r"than the scanned area's 125 x 250; save a mask of the"):
        _find(tmp_path, _make_left_half(256, 192), bounds, "scanned")


def test_a_slide_without_bounds_has_only_one_area(tmp_path):
    for area in ("auto", "scanned", "slide"):
        tissue, note = _find(tmp_path, _make_left_half(256, 192), (0, 0, 4096, 3072), area)
        assert tissue[:, :512].all() and not tissue[:, 512:].any() and note == ""


def test_a_slide_that_is_transparent_everywhere_is_reported():
    config = base_slides.segment("unused", "", "unused")
    view = SimpleNamespace(slide=SimpleNamespace(path="a.tif"), width=99, height=99, mpp=4.0)
    with pytest.raises(InputError, match=r"a\.tif: no tissue found; .*white all over, as what is"):
        find_tissue(config, view, np.full((99, 99, 3), 255, np.uint8), 1.0, None)
    config.tissue.source = "off"
    _, note = find_tissue(config, view, np.full((99, 99, 3), 255, np.uint8), 1.0, None)
    assert note.startswith("it is white all over")


def test_masks_are_found_by_the_names_of_slides(tmp_path):
    def make_masks(*names: str) -> None:
        for path in tmp_path.glob("*.[pP][nN][gG]"):
            path.unlink()
        for name in names:
            (tmp_path / name).touch()

    def find_masks(*slides: str) -> list[str]:
        files = catalog.name_slides([Path(slide) for slide in slides], 0.0, {})
        return [find_mask_file(str(tmp_path), file).name for file in files]

    make_masks("a.PNG", "b.png", "._c.png")
    assert find_masks("a.svs", "b.svs", "c.svs") == ["a.PNG", "b.png", "c.png"]
    # Of two slides a.* it could be either's.
    with pytest.raises(InputError, match=r"a\.svs: .*a\.png could be .* several slides; name"):
        find_masks("a.svs", "a.tif")
    make_masks("a.svs.png", "a.tif.PNG")
    assert find_masks("a.svs", "a.tif") == ["a.svs.png", "a.tif.PNG"]
    make_masks("a.png", "a.PNG")
    with pytest.raises(InputError, match=r"several masks of a\.svs \(a\.PNG, a\.png\); keep one"):
        find_masks("a.svs")
    composed, decomposed = (unicodedata.normalize(form, "ä") for form in ("NFC", "NFD"))
    make_masks(f"{decomposed}.png")  # a file from a Mac
    assert find_masks(f"{composed}.svs") == [f"{decomposed}.png"]
    assert find_mask_file("detect", catalog.SlideFile(Path("a.svs"), "a", None)) is None
