import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_jax.report import canvas, slide_pictures
from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pictures import SlidePictures

CLASSES = ("tumor", "a class with a name that is far too long for the legend of a narrow picture")
PALETTE = ((205, 51, 51), (0, 255, 0), (255, 255, 255))
TISSUE = 120


def pictures(width: int, um_per_pixel: float = 1.0, height: int = 40) -> SlidePictures:
    """Class 0 at the left, class 1 in the middle, the excluded in the last third."""
    labels = np.broadcast_to(np.arange(width) * 3 // width, (height, width)).astype(np.uint8)
    thumbnail = np.full((height, width, 3), TISSUE, np.uint8)
    return SlidePictures(thumbnail, labels, um_per_pixel, Legend(CLASSES, PALETTE))


@pytest.mark.parametrize(
    ("width_um", "expected"),
    [
        (4000, (1000, "1 mm")),
        (3999, (500, "500 µm")),
        (100, (20, "20 µm")),
        (45_000, (10_000, "10 mm")),
        (2.4, (0.5, "0.5 µm")),
    ],
)
def test_scale_bars_are_round(width_um, expected):
    assert slide_pictures.choose_scale_bar(width_um) == expected


@given(st.floats(1e-2, 1e7))
def test_scale_bars_are_the_longest_that_fit(width_um):
    length, _ = slide_pictures.choose_scale_bar(width_um)
    assert length <= width_um / 4 < 2.5 * length * (1 + 1e-9)


@pytest.mark.parametrize(("width", "um_per_pixel"), [(700, 0.73), (60, 21.3), (3, 1.0)])
def test_the_scale_bar_is_right_to_the_pixel(width, um_per_pixel):
    page = slide_pictures.draw_overlay(pictures(width, um_per_pixel))
    expected = round(slide_pictures.choose_scale_bar(width * um_per_pixel)[0] / um_per_pixel)
    ink = (page[canvas.MARGIN + 40 + canvas.GAP :] == canvas.INK).all(axis=-1)
    bar = ink[ink[:, -canvas.MARGIN - 1], : -canvas.MARGIN]
    assert len(bar) == slide_pictures.BAR_HEIGHT
    assert {int(np.argmin(row[::-1])) for row in bar} == {max(1, expected)}
    assert not ink[:, -canvas.MARGIN :].any()


def test_overlay_tints_outlines_and_names_the_classes():
    page = slide_pictures.draw_overlay(pictures(600))
    shown = page[canvas.MARGIN : canvas.MARGIN + 40, canvas.MARGIN : canvas.MARGIN + 600]
    row = [tuple(map(int, color)) for color in shown[20]]
    assert row[198:202] == [row[0], PALETTE[0], PALETTE[1], row[205]]
    assert row[398:401] == [row[205], PALETTE[1], (TISSUE,) * 3]
    assert row[0] == (158, 89, 89)  # 0.55 * 120 + 0.45 * color
    below = page[canvas.MARGIN + 41 :]
    assert all((below == color).all(axis=-1).sum() >= 100 for color in PALETTE[:2])
    assert (page[:, -canvas.MARGIN + 1 :] == 255).all()


def test_regions_are_numbered_like_the_legend(monkeypatch):
    of_slide = pictures(600)
    places = slide_pictures.place_numbers(of_slide)
    assert {place.value for place in places} == {0, 1}
    page = slide_pictures.draw_overlay(of_slide)
    for place in places:
        x, y = canvas.MARGIN + place.x, canvas.MARGIN + place.y
        box = page[y - 8 : y + 9, x - 8 : x + 9]
        assert (box.max(axis=-1) == box.min(axis=-1)).all()  # dark on light, whatever the class
        assert (box == canvas.INK).all(axis=-1).any() and (box == 255).all(axis=-1).any()
    legend = canvas.MARGIN + 40 + canvas.GAP
    entries = list(zip(PALETTE, CLASSES))
    monkeypatch.setattr(Legend, "list_entries", lambda legend: entries)
    unnumbered = slide_pictures.draw_overlay(of_slide)
    assert (page[legend:] != unnumbered[legend:]).any()


def test_layers_have_exact_colors_and_let_the_excluded_through():
    of_slide = pictures(90)
    for data, width in (
        (slide_pictures.encode_map(of_slide), 30),
        (slide_pictures.encode_outlines(of_slide), 1),
    ):
        layer = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[20]
        assert (layer[30 - width : 30] == (*PALETTE[0], 255)).all()
        assert (layer[60 - width : 60] == (*PALETTE[1], 255)).all()
        assert (layer[60:, 3] == 0).all()
        assert (layer[:, 3] == 255).sum() == (60 if width == 30 else 3)


def test_pictures_are_written_alike_each_time(tmp_path):
    of_slide = pictures(600)
    for folder in ("a", "b"):
        slide_pictures.write_pictures(tmp_path / folder, of_slide)
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files] == ["overlay.png", "small.jpg", "thumbnail.png"]
    assert all(file.read_bytes() == (tmp_path / "b" / file.name).read_bytes() for file in files)
    np.testing.assert_array_equal(Image.open(files[2]), of_slide.thumbnail)
    assert Image.open(files[1]).size == (240, 16)
