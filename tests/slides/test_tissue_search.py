"""What a mask of tissue covers, and which file is that of a slide."""

import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import base
from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.tissue_search import find_tissue, mask_file_of
from wsss_jax.slides.reading import catalog

# Of level 0: 4096 x 3072, of which 1024 x 768 at (3000, 2200) were scanned; four to a pixel.
SIZE, SCANNED = (1024, 768), (3000, 2200, 1024, 768)


def _found(tmp_path: Path, mask: np.ndarray, bounds=SCANNED, area="auto"):
    config = base.segment("unused", "", "unused")
    config.tissue.source, config.tissue.mask_area = str(tmp_path), area
    Image.fromarray(mask).save(tmp_path / "a.png")
    slide = SimpleNamespace(path="a.scn", width=4096, height=3072, bounds=bounds, warnings=())
    view = SimpleNamespace(slide=slide, width=SIZE[0], height=SIZE[1], scale=(4.0, 4.0), mpp=2.0)
    overview = np.full((96, 128, 3), 244, np.uint8)
    tissue, note = find_tissue(config, view, overview, 8.0, tmp_path / "a.png")
    return tissue.pixels(0, 0, *SIZE), note


def _left_half(width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def _in_scanned_area(mask: np.ndarray) -> np.ndarray:
    """In working pixels, stretched by an integer or not at all."""
    whole = np.zeros(SIZE[::-1], bool)
    y, x = np.mgrid[550:742, 750:1006]
    rows = (y - 550) * mask.shape[0] // 192
    whole[y, x] = mask[rows, (x - 750) * mask.shape[1] // 256] > 0
    return whole


def test_a_mask_of_the_scanned_area_as_a_viewer_exports_it(tmp_path):
    mask = _left_half(256, 192)
    found, note = _found(tmp_path, mask)
    np.testing.assert_array_equal(found, _in_scanned_area(mask))
    assert found.sum() == 128 * 192
    assert note.startswith("the tissue mask is taken to cover the scanned area; set ")
    assert "tissue.mask_area=slide" in note
    found, note = _found(tmp_path, mask, area="slide")
    assert found[:, :512].all() and not found[:, 512:].any()
    assert note == "the tissue mask is taken to cover the whole slide"


def test_a_mask_of_the_whole_slide_has_its_tissue_where_was_scanned(tmp_path):
    mask = np.zeros((192, 256), np.uint8)
    mask[140:180, 190:240] = 1
    found, note = _found(tmp_path, mask)
    np.testing.assert_array_equal(found, np.kron(mask, np.ones((4, 4))) > 0)
    assert "cover the whole slide; set --config.tissue.mask_area=scanned if" in note
    found, _ = _found(tmp_path, mask, area="scanned")
    np.testing.assert_array_equal(found, _in_scanned_area(mask))
    # Where nearly all was scanned its place says nothing: as in the viewer.
    bounds = 100, 75, 3840, 2880
    assert "cover the scanned area; set" in _found(tmp_path, mask, bounds)[1]


def test_the_shape_tells_where_it_can(tmp_path):
    bounds = 3000, 1000, 500, 1000
    found, note = _found(tmp_path, _left_half(60, 120), bounds)
    assert note == "the tissue mask is taken to cover the scanned area"
    assert found.sum() == pytest.approx(125 * 250 / 2, rel=0.03)
    found, note = _found(tmp_path, _left_half(256, 192), bounds)
    assert note == "the tissue mask is taken to cover the whole slide" and found[:, :512].all()
    words = r"100 x 10 pixels, another shape than the whole slide's 1024 x 768 and the scanned area"
    with pytest.raises(InputError, match=rf"a\.png: {words}'s 125 x 250; save a mask of the whole"):
        _found(tmp_path, _left_half(100, 10), bounds)
    with pytest.raises(InputError, match=r"than the scanned area's 125 x 250; save a mask of the"):
        _found(tmp_path, _left_half(256, 192), bounds, "scanned")


def test_a_slide_without_bounds_has_but_one_area(tmp_path):
    for area in ("auto", "scanned", "slide"):
        found, note = _found(tmp_path, _left_half(256, 192), (0, 0, 4096, 3072), area)
        assert found[:, :512].all() and not found[:, 512:].any() and note == ""


def test_a_slide_that_is_transparent_all_over_is_said():
    config = base.segment("unused", "", "unused")
    view = SimpleNamespace(slide=SimpleNamespace(path="a.tif"), width=99, height=99, mpp=4.0)
    with pytest.raises(InputError, match=r"a\.tif: no tissue found; .*white all over, as what is"):
        find_tissue(config, view, np.full((99, 99, 3), 255, np.uint8), 1.0, None)
    config.tissue.source = "off"
    _, note = find_tissue(config, view, np.full((99, 99, 3), 255, np.uint8), 1.0, None)
    assert note.startswith("it is white all over")


def test_masks_of_slides_by_their_names(tmp_path):
    def masks(*names: str) -> None:
        for path in tmp_path.glob("*.[pP][nN][gG]"):
            path.unlink()
        for name in names:
            (tmp_path / name).touch()

    def of(*slides: str) -> list[str]:
        files = catalog.files([Path(slide) for slide in slides], 0.0, {})
        return [mask_file_of(str(tmp_path), file).name for file in files]

    masks("a.PNG", "b.png", "._c.png")
    assert of("a.svs", "b.svs", "c.svs") == ["a.PNG", "b.png", "c.png"]
    # Of two slides a.* it could be either's.
    with pytest.raises(InputError, match=r"a\.svs: .*a\.png could be .* several slides; call"):
        of("a.svs", "a.tif")
    masks("a.svs.png", "a.tif.PNG")
    assert of("a.svs", "a.tif") == ["a.svs.png", "a.tif.PNG"]
    masks("a.png", "a.PNG")
    with pytest.raises(InputError, match=r"several masks of a\.svs \(a\.PNG, a\.png\); keep one"):
        of("a.svs")
    composed, decomposed = (unicodedata.normalize(form, "ä") for form in ("NFC", "NFD"))
    masks(f"{decomposed}.png")  # a file from a Mac
    assert of(f"{composed}.svs") == [f"{decomposed}.png"]
    assert mask_file_of("detect", catalog.SlideFile(Path("a.svs"), "a", None)) is None
