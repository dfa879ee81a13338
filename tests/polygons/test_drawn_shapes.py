"""Shapes painted into masks, and masks outlined and painted again."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss_jax.errors import InputError
from wsss_jax.polygons.outlines import outline_regions
from wsss_jax.polygons.shapes import (
    Shape,
    Window,
    check_overlap,
    cut_window,
    make_circle,
    paint,
    sort_shapes,
    trace_bitmap,
)
from wsss_jax.slides.outputs.geojson import PolygonRule

EXCLUDED = 3
MAPS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 0, 1, 2, EXCLUDED]))
)


def draw_blobs(seed: int, size: int = 160) -> np.ndarray:
    """A mask of smooth regions in one another, as tissue has them."""
    noise = np.random.default_rng(seed).random((4, size, size)).astype(np.float32)
    smooth = [cv2.GaussianBlur(each, (0, 0), 7) for each in noise]
    return np.argmax(smooth, axis=0).astype(np.uint8)


def make_shape(polygon: shapely.Polygon, label: str = "a") -> Shape:
    return Shape(f"shape ({label!r})", label, [polygon])


def paint_outlines(outlines, shape):
    drawn = [(make_shape(shapely.Polygon(each.ring)), each.value) for each in outlines]
    return paint(drawn, Window(shape[1], shape[0]), EXCLUDED)


@given(
    st.lists(
        st.tuples(*2 * [st.integers(-300, 1300).map(lambda v: v / 100)]), min_size=3, max_size=8
    ),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_pixel_belongs_to_the_shape_that_its_center_lies_in(points, turned):
    ring = points[::-1] if turned else points
    polygon = shapely.Polygon([*ring, ring[0]])
    mask = paint([(make_shape(polygon), 1)], Window(10, 10), 0)
    x, y = np.meshgrid(np.arange(10) + 0.5, np.arange(10) + 0.5)
    # Even-odd, of which shapely knows nothing: the sides that a ray to the right crosses.
    inside = np.zeros((10, 10), bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    clear = shapely.distance(shapely.points(x, y), shapely.LinearRing(ring)) > 1e-6
    np.testing.assert_array_equal(mask[clear], inside[clear])


def test_coordinates_scale_and_shift():
    window = Window(10, 8, (4.0, 2.0), (100.0, 50.0))
    mask = paint([(make_shape(shapely.box(108, 54, 120, 60)), 2)], window, 0)
    expected = np.zeros((8, 10), np.uint8)
    expected[2:5, 2:5] = 2
    np.testing.assert_array_equal(mask, expected)


def test_parts_of_a_shape_that_overlap_do_not_cancel():
    parts = [shapely.box(0, 0, 4, 4), shapely.box(2, 2, 6, 6)]
    mask = paint([(Shape("shape 1", "a", parts), 1)], Window(6, 6), 0)
    assert mask.sum() == 16 + 16 - 4 and mask[3, 3] == 1


def test_a_circle():
    mask = paint([(make_shape(make_circle((50.0, 40.0), (50.0, 70.0))), 1)], Window(100, 80), 0)
    y, x = np.mgrid[:80, :100] + 0.5
    distance = np.hypot(x - 50, y - 40)
    clear = abs(distance - 30) > 0.1
    np.testing.assert_array_equal(mask[clear], (distance < 30)[clear])


@given(MAPS, st.integers(-3, 3), st.integers(-3, 3))
@settings(max_examples=60, deadline=None)
def test_a_bitmap_is_traced_exactly(bitmap, x, y):
    window = Window(bitmap.shape[1], bitmap.shape[0], corner=(x, y))
    drawn = [(Shape("shape 1", "a", trace_bitmap(bitmap, (x, y))), 1)]
    np.testing.assert_array_equal(paint(drawn, window, 0), bitmap != 0)


@pytest.mark.parametrize(
    ("overlap", "order", "expected"),
    [
        ("drawn", [], [0, 1, 2]),
        ("smaller", [], [2, 0, 1]),
        ("classes", [1, 0, 2], [1, 0, 2]),
        ("classes", [1, 2, 0], [1, 2, 0]),
        ("classes", [2, 1], [2, 1, 0]),
    ],
)
def test_what_lies_on_top(overlap, order, expected):
    drawn = [(make_shape(shapely.box(0, 0, side, side)), i) for i, side in enumerate((3, 2, 4))]
    assert [value for _, value in sort_shapes(drawn, overlap, order)] == expected


def test_shapes_of_one_size_stay_as_they_were_drawn():
    drawn = [(make_shape(shapely.box(0, 0, 2, 2)), value) for value in (2, 0, 1)]
    assert sort_shapes(drawn, "smaller", []) == drawn


def test_a_shape_beside_the_image_is_refused():
    shapes = [make_shape(shapely.box(-2, -2, 1, 1)), make_shape(shapely.box(11, 2, 14, 5), "far")]
    window = Window(10, 8)
    check_overlap(shapes[:1], window, Path("a.json"))
    with pytest.raises(
        InputError, match=r"a\.json: shape \('far'\) lies outside of the image.* 10"
    ):
        check_overlap(shapes, window, Path("a.json"))


def test_a_window_around_a_shape():
    whole = Window(100, 80, (2.0, 2.0), (-10.0, -6.0))
    column, row, window = cut_window(make_shape(shapely.box(0.7, -20, 21, 500)), whole)
    assert (column, row) == (5, 0)

    assert window.corner == (0.0, -6.0) and window.height == 80


@given(MAPS)
@settings(max_examples=200, deadline=None)
def test_outlines_painted_over_each_other_are_the_mask(mask):
    outlines = outline_regions(mask, EXCLUDED, PolygonRule())
    np.testing.assert_array_equal(paint_outlines(outlines, mask.shape), mask)


def test_what_is_excluded_is_outlined_only_inside_of_others():
    mask = np.full((9, 9), EXCLUDED, np.uint8)
    mask[2:8, 2:8] = 1
    mask[4:6, 4:6] = EXCLUDED
    assert [each.value for each in outline_regions(mask, EXCLUDED, PolygonRule())] == [1, EXCLUDED]


@pytest.mark.parametrize("seed", range(3))
def test_simplified_outlines_move_by_the_tolerance_at_most(seed):
    mask = draw_blobs(seed)
    exact = outline_regions(mask, EXCLUDED, PolygonRule())
    simple = outline_regions(mask, EXCLUDED, PolygonRule(16.0, 0.5))
    assert sum(len(each.ring) for each in simple) < sum(len(each.ring) for each in exact)
    changed = paint_outlines(simple, mask.shape) != mask
    # Pixels that changed are beside a border, or in a region that is too small.
    kernel = np.ones((3, 3), np.uint8)
    border = cv2.dilate(mask, kernel) != cv2.erode(mask, kernel)
    small = np.zeros_like(border)
    for value in range(EXCLUDED + 1):
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(
            (mask == value).astype(np.uint8), connectivity=4
        )
        small |= (statistics[labels, cv2.CC_STAT_AREA] < 16) & (mask == value)
    assert not (changed & ~border & ~small).any()
    assert changed.mean() < 0.05


def test_too_many_classes_for_labelme():
    with pytest.raises(InputError, match="at most 254"):
        outline_regions(np.zeros((2, 2), np.uint8), 255, PolygonRule())
