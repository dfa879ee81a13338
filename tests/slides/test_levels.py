"""Levels of a pyramid that show another picture than the slide."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from data.synthetic_slides import draw_waves, write_arrays
from wsss_jax.slides.reading.levels import drop_foreign_levels
from wsss_jax.slides.reading.raw_slide import RawSlide
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View

WAVES = draw_waves(640, 480)
PAGES = {
    "A": (WAVES, 0),
    "a": (WAVES[::2, ::2], 1),
    "B": (255 - WAVES, 0),
    "b": ((255 - WAVES)[::2, ::2], 1),
    "C": (255 - WAVES[:432, :576], 0),  # a smaller section
    "c": (255 - WAVES[:432:2, :576:2], 1),
}


def _write(path: Path, order: str) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for letter in order:
            image, kind = PAGES[letter]
            options = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
            options |= {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
            writer.write(np.ascontiguousarray(image), subfiletype=kind, **options)
    return path


@pytest.mark.parametrize("order", ["ABb", "ABab", "AaBb", "ACc", "AaCc", "AaCcBb"])
def test_levels_of_another_section_are_left_out(tmp_path, order):
    slide = open_slide(_write(tmp_path / "s.tif", order))
    assert [level.downsample for level in slide.levels] == ([1, 2] if "a" in order else [1])
    np.testing.assert_array_equal(slide.read(0, 0, 0, 640, 480), WAVES)
    assert any("shows another picture and is left out" in note for note in slide.warnings)
    for mpp in (1.0, 1.15):
        view = View(slide, mpp)
        image = view.read(0, 0, view.width, view.height)
        expected = cv2.resize(WAVES, (view.width, view.height), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - expected).max() < 12


@pytest.mark.parametrize("style", ["aperio", "ome"])
def test_levels_of_another_section_are_left_out_of_every_format(tmp_path, style):
    path = tmp_path / ("a.svs" if style == "aperio" else "o.ome.tif")
    levels = [WAVES, WAVES[::2, ::2], 255 - WAVES[::4, ::4], WAVES[::8, ::8]]
    write_arrays(path, levels, 0.5, style)
    slide = open_slide(path)
    assert [level.downsample for level in slide.levels] == [1, 2, 8]
    assert slide.warnings == (
        "its level of 160 x 120 pixels shows another picture and is left out",
    )


def _make_slide(*levels: np.ndarray) -> RawSlide:
    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return levels[level][y : y + height, x : x + width]

    sizes = tuple((level.shape[1], level.shape[0]) for level in levels)
    return RawSlide(sizes, read, lambda: None, "test")


def test_small_sections_and_blank_levels_are_compared_by_their_pixels():
    glass = np.full((2048, 2048, 3), 244, np.uint8)
    full, other = glass.copy(), glass.copy()
    full[300:420, 1500:1700] = draw_waves(200, 120)
    other[1400:1500, 300:500] = draw_waves(200, 100)
    lower = cv2.resize(other, (512, 512), interpolation=cv2.INTER_AREA)
    assert drop_foreign_levels(_make_slide(full, lower)).sizes == ((2048, 2048),)
    lower = np.full((512, 512, 3), 100, np.uint8)
    assert drop_foreign_levels(_make_slide(full, lower)).sizes == ((2048, 2048),)
    assert len(drop_foreign_levels(_make_slide(glass, glass[::4, ::4])).sizes) == 2


@pytest.mark.parametrize("factor", [2, 3.7, 16])
@pytest.mark.parametrize("kind", [cv2.INTER_NEAREST, cv2.INTER_AREA, cv2.INTER_CUBIC])
def test_levels_may_be_made_by_any_filter(factor, kind):
    noise = np.random.default_rng(0).normal(0, 30, (800, 1000, 3))
    full = (draw_waves(1000, 800) * 0.5 + noise + 60).clip(0, 255).astype(np.uint8)
    size = int(1000 / factor), int(800 / factor)
    lower = cv2.resize(full, size, interpolation=kind).astype(int)
    for image in (lower, lower + 15, np.roll(lower, 1, axis=(0, 1))):  # brighter, shifted
        level = image.clip(0, 255).astype(np.uint8)
        assert len(drop_foreign_levels(_make_slide(full, level)).sizes) == 2
