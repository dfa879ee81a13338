"""Where patches lie."""

import itertools

import numpy as np
import pytest

from wsss_jax.sampling.positions import Area, draw_positions, place_grid
from wsss_jax.slides.mapping.tissue import Tissue

WIDTH, HEIGHT = 1000, 800
WHOLE = Area(0, 0, WIDTH, HEIGHT)


@pytest.fixture
def tissue() -> Tissue:
    """Tissue in the left half, but for a hole."""
    mask = np.zeros((8, 10), bool)
    mask[:, :5] = True
    mask[3:5, 1:3] = False
    return Tissue(mask, WIDTH, HEIGHT)


def draw(tissue, count=50, max_overlap=0.25, seed=0, area=WHOLE):
    rng = np.random.default_rng(seed)
    return draw_positions(tissue, area, 64, count, max_overlap, rng)


def measure_overlaps(corners, side):
    """The largest share of a square that another one covers."""
    pairs = itertools.combinations(corners.tolist(), 2)
    sides = [(max(0, side - abs(a - c)), max(0, side - abs(b - d))) for (a, b), (c, d) in pairs]
    return max(wide * tall for wide, tall in sides) / side**2


def test_centers_are_on_tissue_and_squares_inside(tissue):
    corners = draw(tissue)
    assert corners.shape == (50, 2)
    assert corners.min() >= 0 and (corners + 64 <= (WIDTH, HEIGHT)).all()
    assert all(tissue.has_tissue(x + 32, y + 32, 1, 1) for x, y in corners)
    inner = draw(tissue, area=Area(100, 200, 400, 700))
    assert (inner >= (100, 200)).all() and (inner + 64 <= (400, 700)).all()


@pytest.mark.parametrize("most", [0.0, 0.25, 0.6])
def test_overlap_is_at_most_so_much(tissue, most):
    corners = draw(tissue, count=10_000, max_overlap=most)
    assert 30 < len(corners) < 10_000  # until no more find room
    assert measure_overlaps(corners, 64) <= most
    if most:
        assert measure_overlaps(corners, 64) > 0.9 * most


def test_the_seed_decides_and_the_count_does_not(tissue):
    np.testing.assert_array_equal(draw(tissue), draw(tissue))
    np.testing.assert_array_equal(draw(tissue, count=20), draw(tissue)[:20])
    assert (draw(tissue, seed=1) != draw(tissue)).any()


def test_all_tissue_is_as_likely(tissue):
    """Also the last pixels, and where the mask's cells have different sizes."""
    uneven = Tissue(np.array([[True, False, True]]), 10, 2)  # 3, 3 or 4 columns each
    pixels = uneven.draw_pixels(np.random.default_rng(0), 7000)
    inside = [(x, y) for x in range(10) for y in range(2) if uneven.has_tissue(x, y, 1, 1)]
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    assert list(map(tuple, values.tolist())) == inside
    assert np.abs(counts / (7000 / len(inside)) - 1).max() < 0.2


def test_no_tissue_and_no_room_give_none(tissue):
    assert draw(Tissue(np.zeros((2, 2), bool), WIDTH, HEIGHT)).shape == (0, 2)
    assert draw(tissue, area=Area(0, 0, 60, HEIGHT)).shape == (0, 2)
    assert place_grid(tissue, Area(0, 0, 60, HEIGHT), 64, 0.0).shape == (0, 2)


@pytest.mark.parametrize(("most", "stride"), [(0.0, 64), (0.25, 48), (0.5, 32)])
def test_a_grid(tissue, most, stride):
    corners = place_grid(tissue, Area(10, 20, WIDTH, HEIGHT), 64, most)
    assert ((corners - (10, 20)) % stride == 0).all()
    assert all(tissue.has_tissue(x + 32, y + 32, 1, 1) for x, y in corners)
    assert measure_overlaps(corners, 64) <= most
    on_tissue = sum(
        tissue.has_tissue(x + 32, y + 32, 1, 1)
        for x in range(10, WIDTH - 63, stride)
        for y in range(20, HEIGHT - 63, stride)
    )
    assert len(corners) == on_tissue
