"""Resampling: exact means of areas, independent of the part of the image."""

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image

from wsss_jax.slides.reading.resampling import is_mean, resize

NOISE = np.random.default_rng(0).integers(0, 256, (240, 300, 3), np.uint8)


def _mean(source: np.ndarray, left: Fraction, right: Fraction) -> np.ndarray:
    """Computes the mean of an interval of rows, in exact arithmetic."""
    total = np.zeros(source.shape[1:], object)
    for row in range(int(left), -int(-right // 1)):
        total = total + source[row].astype(object) * (min(right, row + 1) - max(left, row))
    return total / (right - left)


@pytest.mark.parametrize("ratio", [Fraction(2), Fraction(5, 2), Fraction(31, 16), Fraction(25, 4)])
def test_a_pixel_is_the_exact_mean_of_its_area(ratio):
    size, small = 12, NOISE[:90, :90]
    exact = np.stack([_mean(small, i * ratio, (i + 1) * ratio) for i in range(size)])
    exact = np.stack([_mean(exact.swapaxes(0, 1), i * ratio, (i + 1) * ratio) for i in range(size)])
    end = float(size * ratio)
    resized = resize(small, (0, 0, end, end), (size, size), (float(ratio),) * 2, "area")
    assert np.abs(resized - exact.swapaxes(0, 1).astype(float)).max() <= 0.5 + 1e-4


def test_whole_ratios_agree_with_opencv():
    resized = resize(NOISE, (0, 0, 300, 240), (75, 80), (4.0, 3.0), "area")
    expected = cv2.resize(NOISE, (75, 80), interpolation=cv2.INTER_AREA)
    assert np.abs(resized.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("ratio", [1.98, 2.0, 3.7])
def test_a_part_is_resampled_as_within_the_whole(ratio):
    width, height = int(300 / ratio) - 1, int(240 / ratio) - 1
    box = 0, 0, width * ratio, height * ratio
    whole = resize(NOISE, box, (width, height), (ratio, ratio), "area")
    for x, y in ((7, 3), (31, 17)):
        left, top = int(x * ratio), int(y * ratio)  # as little as covers the part
        part = NOISE[top : int((y + 20) * ratio) + 1, left : int((x + 30) * ratio) + 1]
        box = [x * ratio - left, y * ratio - top, (x + 30) * ratio - left, (y + 20) * ratio - top]
        resized = resize(part, tuple(box), (30, 20), (ratio, ratio), "area")
        np.testing.assert_array_equal(resized, whole[y : y + 20, x : x + 30])


@pytest.mark.parametrize("ratio", [(1.98, 1.98), (2.0, 3.957), (3.7, 0.8), (1.0, 3.3)])
def test_a_mean_needs_no_margin(ratio):
    """What a mean does not cover may be missing, and changes no bit of it."""
    box = (13.3, 12.6, 13.3 + 40 * ratio[0], 12.6 + 50 * ratio[1])
    box = tuple(round(end) if ratio[i % 2] == 1 else end for i, end in enumerate(box))
    whole = resize(NOISE, box, (40, 50), ratio, "area")
    corner = [int(start) if is_mean(along, "area") else 0 for start, along in zip(box, ratio)]
    stop = [
        math.ceil(end) if is_mean(along, "area") else None for end, along in zip(box[2:], ratio)
    ]
    part = NOISE[corner[1] : stop[1], corner[0] : stop[0]]
    assert part.shape != NOISE.shape
    np.testing.assert_array_equal(resize(part, box, (40, 50), ratio, "area", corner), whole)


def test_each_axis_has_its_own_ratio():
    """Means across, a copy or an enlargement down."""
    halved = resize(NOISE, (0, 10, 300, 110), (150, 100), (2.0, 1.0), "area")
    expected = NOISE[10:110].reshape(100, 150, 2, 3).mean(axis=2)
    assert np.abs(halved - expected).max() <= 0.5
    both = resize(NOISE, (0, 0, 300, 240), (150, 480), (2.0, 0.5), "area")
    halved = resize(NOISE, (0, 0, 300, 240), (150, 240), (2.0, 1.0), "area")
    enlarged = Image.fromarray(halved).resize((150, 480), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(both, np.asarray(enlarged))


def test_enlarging_and_triangle_agree_with_pillow():
    for ratio, method in ((0.7, "area"), (0.7, "triangle"), (2.6, "triangle")):
        width, height = int(280 / ratio), int(230 / ratio)
        box = 4.5, 3.25, 4.5 + width * ratio, 3.25 + height * ratio
        resized = resize(NOISE, box, (width, height), (ratio, ratio), method)
        expected = Image.fromarray(NOISE).resize((width, height), Image.Resampling.BILINEAR, box)
        np.testing.assert_array_equal(resized, np.asarray(expected))


def test_area_keeps_as_much_detail_as_a_level_of_the_pyramid():
    """Measured on stripes 3 result pixels wide; a triangle filter keeps three quarters."""
    x = np.arange(600)
    stripes = (128 + 100 * np.sin(2 * np.pi * x / 6)).round().astype(np.uint8)
    image = np.broadcast_to(stripes[None, :, None], (64, 600, 3))
    level = image.reshape(32, 2, 300, 2, 3).mean(axis=(1, 3))
    contrast = {
        method: resize(np.ascontiguousarray(image), (0, 0, 600, 64), (300, 32), (2.0, 2.0), method)
        .astype(float)
        .std()
        / level.std()
        for method in ("area", "triangle")
    }
    assert contrast["area"] == pytest.approx(1, abs=0.01)
    assert contrast["triangle"] < 0.8
