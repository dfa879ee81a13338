"""The slide at the working resolution."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.synthetic_slides import write_arrays
from tests.slides.conftest import HEIGHT, WIDTH
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import view as view_module
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View

REAL = Path(__file__).parents[3] / "shared" / "data" / "slides"


@pytest.fixture(scope="module")
def tall_pixels(tmp_path_factory: pytest.TempPathFactory, waves: np.ndarray) -> Path:
    """A slide of 0.25 x 0.5 micrometers per pixel, of 0.0625 mm2."""
    path = tmp_path_factory.mktemp("tall") / "t.tif"
    image = cv2.resize(waves[:500, :500], (1000, 500), interpolation=cv2.INTER_NEAREST)
    tifffile.imwrite(
        path,
        image,
        photometric="rgb",
        tile=(256, 256),
        resolution=(40000, 20000),
        resolutionunit="CENTIMETER",
    )
    return path


def test_pixels_that_are_not_square_are_resampled_by_axis(tall_pixels, waves):
    slide = open_slide(tall_pixels)
    assert slide.mpp_xy == (0.25, 0.5)
    assert slide.mpp**2 == slide.metadata_mpp**2 == pytest.approx(0.125)  # of their area
    (note,) = slide.warnings
    assert "not square (0.25 x 0.5 micrometers" in note
    view = View(slide, 0.5)
    assert (view.width, view.height, view.scale) == (500, 500, (2.0, 1.0))
    np.testing.assert_array_equal(view.read(0, 0, 500, 500), waves[:500, :500])
    assert view.read_overview(100)[0].shape == (100, 100, 3)
    quarter = View(slide, 0.25)  # copied across, enlarged down
    assert (quarter.width, quarter.height) == (1000, 1000)
    enlarged_image = quarter.read(100, 100, 800, 800).astype(int)
    assert np.abs(enlarged_image[:, ::2] - cv2.resize(waves[50:450, 50:450], (400, 800))).max() <= 4
    with pytest.raises(InputError, match=r"its 0\.5 micrometers .* over twice the 0\.2 "):
        View(slide, 0.2)
    # A number set by the user is used for both axes.
    slide = open_slide(tall_pixels, 0.5)
    assert slide.mpp_xy == (0.5, 0.5) and "0.5 is used for both" in slide.warnings[0]


def _compare_with_source(image: np.ndarray, source: np.ndarray, ratio: float) -> np.ndarray:
    """Returns the difference of an image from its `ratio` times larger source, resized at once."""
    height, width = image.shape[:2]
    padded = Image.fromarray(np.pad(source, ((0, 9), (0, 9), (0, 0)), mode="edge"))
    box = (0, 0, width * ratio, height * ratio)
    expected = np.asarray(padded.resize((width, height), Image.Resampling.BILINEAR, box))
    return np.abs(image.astype(int) - expected)


@pytest.mark.parametrize("resample", ["area", "triangle"])
@pytest.mark.parametrize("ratio", [1, 2, 3.7])
@pytest.mark.parametrize("name", ["a.svs", "o.ome.tif"])
def test_the_view_is_level_0_resized(slides_dir, waves, name, ratio, resample, monkeypatch):
    monkeypatch.setattr(view_module, "BLOCK", 128)  # several blocks
    view = View(open_slide(slides_dir / name), 0.5 * ratio, resample)
    size = (round(WIDTH / ratio), round(HEIGHT / ratio))
    assert (view.width, view.height) == size
    # Where a level ends early its border is repeated, which is not compared.
    image = view.read(0, 0, int(WIDTH // ratio), int(HEIGHT // ratio))
    assert _compare_with_source(image, waves, ratio).max() <= (0 if ratio == 1 else 2)


@pytest.mark.parametrize("resample", ["area", "triangle"])
def test_blocks_and_their_size_do_not_show(slides_dir, monkeypatch, resample):
    slide = open_slide(slides_dir / "g.tif")
    whole = View(slide, 0.65, resample)
    monkeypatch.setattr(view_module, "BLOCK", 64)
    blocks = View(slide, 0.65, resample)
    region = (0, 0, whole.width, whole.height)
    difference = np.abs(whole.read(*region).astype(int) - blocks.read(*region))
    assert difference.max() <= 1


@pytest.fixture(scope="module")
def views(slides_dir: Path) -> list[tuple[View, np.ndarray]]:
    """Views without and with resampling, one enlarged, and each as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view_module, "BLOCK", 64)
        patch.setattr(view_module, "CACHE_BYTES", 5 * 64 * 64 * 3)  # blocks are made again
        slide = open_slide(slides_dir / "a.svs")
        made = [View(slide, mpp) for mpp in (0.3, 1.0, 1.7)]
    return [(view, view.read(0, 0, view.width, view.height)) for view in made]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2),
    st.tuples(*[st.integers(-80, 900)] * 2),
    st.tuples(*[st.integers(1, 300)] * 2),
)
def test_a_pixel_does_not_depend_on_the_region_that_is_read(views, index, corner, size):
    view, whole = views[index]
    padded = np.full((1700, 2200, 3), 255, np.uint8)
    padded[80 : 80 + view.height, 80 : 80 + view.width] = whole[: 1700 - 80, : 2200 - 80]
    x, y = corner
    expected = padded[y + 80 : y + 80 + size[1], x + 80 : x + 80 + size[0]]
    np.testing.assert_array_equal(view.read(x, y, *size), expected)


def test_threads_read_the_same_and_share_blocks(slides_dir, monkeypatch):
    slide = open_slide(slides_dir / "o.ome.tif")
    view, made = View(slide, 0.65), []
    expected = View(slide, 0.65).read(0, 0, view.width, view.height)
    block, barrier = view_module.read_block, threading.Barrier(8)
    monkeypatch.setattr(view_module, "read_block", lambda *a: made.append(a[2:]) or block(*a))

    def read(_: int) -> np.ndarray:
        barrier.wait(10)
        return view.read(0, 0, view.width, view.height)

    with ThreadPoolExecutor(8) as threads:
        for got in threads.map(read, range(8)):
            np.testing.assert_array_equal(got, expected)
    assert len(made) == 1


def test_level_ratios_that_are_not_whole_numbers(tmp_path, waves):
    small = np.asarray(Image.fromarray(waves).resize((444, 361), Image.Resampling.BOX))
    write_arrays(tmp_path / "r.svs", [waves, small], 0.5)
    view = View(open_slide(tmp_path / "r.svs"), 1.5)
    assert view.slide.levels[1].downsample == pytest.approx(2.502, abs=1e-3)
    assert _compare_with_source(view.read(0, 0, view.width, view.height), waves, 3).max() <= 3
    # 903 rows halved are 451, which 452 working rows need: the last one is not white.
    write_arrays(tmp_path / "h.svs", [waves, waves[:902:2, :1110:2]], 0.5)
    view = View(open_slide(tmp_path / "h.svs"), 1.0)
    assert view.height == 452
    np.testing.assert_array_equal(view.read(0, 451, 500, 1), view.read(0, 450, 500, 1))


def test_tiny_and_coarse_slides(tmp_path):
    write_arrays(tmp_path / "t.svs", [np.full((3, 5, 3), 7, np.uint8)], 0.5)
    view = View(open_slide(tmp_path / "t.svs"), 10.0)
    assert (view.width, view.height) == (1, 1)
    assert (view.read(0, 0, 1, 1) == 7).all()
    assert view.read_overview(100)[0].shape == (1, 1, 3)
    enlarged = View(open_slide(tmp_path / "t.svs"), 0.25)
    assert (enlarged.width, enlarged.height) == (10, 6)
    assert "enlarged" in enlarged.warning and not view.warning
    with pytest.raises(InputError, match=r"t\.svs: its 0\.5 micrometers .* over twice the 0\.2 "):
        View(open_slide(tmp_path / "t.svs"), 0.2)


def test_the_overview_is_the_slide_at_low_resolution(slides_dir, waves):
    view = View(open_slide(slides_dir / "o.ome.tif"), 1.0)
    small, factor = view.read_overview(100)
    assert small.shape == (81, 100, 3)
    assert factor == view.width / 100
    expected = np.asarray(Image.fromarray(waves).resize((100, 81), Image.Resampling.BILINEAR))
    assert np.abs(small.astype(int) - expected).mean() < 3
    same, factor = view.read_overview(5000)
    assert factor == 1
    np.testing.assert_array_equal(same, view.read(0, 0, view.width, view.height))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared")
def test_real_slides():
    slide = open_slide(REAL / "cmu-1-small-region.svs")
    assert (slide.mpp, slide.objective_power) == (0.499, 20)
    view = View(slide, 0.499)
    np.testing.assert_array_equal(view.read(900, 900, 300, 300), slide.read(0, 900, 900, 300, 300))
    slide = open_slide(REAL / "tcga-cr-7395-01a-01-ts1.svs", 0.5)
    assert slide.metadata_mpp is None
    lower, full = View(slide, 1.0), slide.read(0, 2000, 2000, 600, 600)
    half = np.asarray(Image.fromarray(full).resize((300, 300), Image.Resampling.BOX))
    # The scanner reduced the level by another filter: similar, and not shifted.
    errors = [
        np.abs(lower.read(1000 + shift, 1000, 300, 300).astype(int) - half).mean()
        for shift in (-1, 0, 1)
    ]
    assert errors[1] < 0.7 * min(errors[0], errors[2])


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0, 2.0, 0.4])
def test_squares_read_alone_are_those_of_the_whole(slides_dir, mpp):
    with open_slide(slides_dir / "a.svs") as slide:
        view = View(slide, mpp)
        whole = view.read(0, 0, view.width, view.height).astype(int)
        for x, y in ((0, 0), (37, 51), (view.width - 64, view.height - 64)):
            square = view.read_alone(x, y, 64)
            assert square.shape == (64, 64, 3) and square.dtype == np.uint8
            difference = np.abs(square - whole[y : y + 64, x : x + 64])
            assert difference.max() <= (0 if mpp in (0.5, 1.0, 2.0) else 1)


def test_a_square_too_large_to_be_resampled_at_once(slides_dir, monkeypatch):
    with open_slide(slides_dir / "a.svs") as slide:
        view = View(slide, 0.7)
        expected = view.read(10, 20, 300, 300)
        monkeypatch.setattr(view_module, "_SOURCE", 256)
        np.testing.assert_array_equal(view.read_alone(10, 20, 300), expected)
