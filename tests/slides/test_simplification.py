"""`simplify_rings` beside GEOS, and polygons made in groups beside polygons made one by one."""

import functools

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import geojson, regions
from wsss_jax.slides.outputs.geojson import PolygonRule
from wsss_jax.slides.outputs.regions import Region
from wsss_jax.slides.outputs.segments import may_meet, meet
from wsss_jax.slides.outputs.simplification import simplify_rings

EXCLUDED = 3
KINDS = ("pixels", "blobs", "blocks", "holes")
TOLERANCES = st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0])
FRAME = MapFrame(0, 0, 1.0, (1.9876, 2.0), (10**6, 10**6), (3, 0))


def draw(kind: str, seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    """A map of classes 0 and 1 and of what is excluded; most regions touch in corners."""
    rng = np.random.default_rng(seed)
    noise = rng.random((height, width))
    if kind == "blobs":
        noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.6, 2.5))
        return np.digitize(noise, [0.45, 0.5, 0.56]).astype(np.uint8)
    if kind == "blocks":
        noise = np.kron(noise[::3, ::2], np.ones((3, 2)))[:height, :width]
        noise = np.where(rng.random((height, width)) < 0.05, 1 - noise, noise)
    share = 0.93 if kind == "holes" else 0.55
    return np.select([noise < share, noise > 0.97], [0, 1], EXCLUDED).astype(np.uint8)


def trace(labels: np.ndarray, least: float = 0.0) -> list[Region]:
    height, width = labels.shape
    read_rows = lambda y0, y1, step: labels[y0:y1:step, ::step]  # noqa: E731
    return list(regions.find_regions(read_rows, width, height, EXCLUDED, least))


@pytest.mark.skipif(shapely.geos_version < (3, 14), reason="older GEOS simplifies otherwise")
@given(st.sampled_from(KINDS), st.integers(0, 10**6), TOLERANCES, st.sampled_from([0, 6]))
@settings(max_examples=25, deadline=None)
def test_rings_are_those_of_geos(kind, seed, tolerance, least):
    for region in trace(draw(kind, seed), least):
        simple = shapely.simplify(shapely.Polygon(region.rings[0], region.rings[1:]), tolerance)
        expected = [shapely.get_coordinates(each) for each in shapely.get_rings(simple)]
        for ours, theirs in zip(simplify_rings(region.rings, tolerance), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(shapely.geos_version < (3, 14), reason="older GEOS simplifies otherwise")
def test_topology_is_kept_where_douglas_and_peucker_lose_it():
    """Otherwise the test above would say nothing about what `find_conflicts` is for."""
    plain = kept = 0
    for region in trace(draw("pixels", 1)):
        polygon = shapely.Polygon(region.rings[0], region.rings[1:])
        plain += not shapely.simplify(polygon, 2, preserve_topology=False).is_valid
        rings = simplify_rings(region.rings, 2)
        simple = shapely.Polygon(rings[0], rings[1:])
        plain += not simple.equals(shapely.simplify(polygon, 2, preserve_topology=False))
        kept += simple.equals_exact(shapely.simplify(polygon, 2), 0)
    assert plain > 0 and kept == len(trace(draw("pixels", 1)))


def make_alone(region: Region, rule: PolygonRule) -> list[list[np.ndarray]]:
    """The polygons of a region by the definition, with GEOS and without groups."""
    move = functools.partial(geojson._move_points, frame=FRAME)
    exact = shapely.Polygon(region.rings[0], region.rings[1:])
    candidates = [(exact, True)]
    if rule.simplify:
        simple = [exact.simplify(tolerance) for tolerance in (rule.simplify, rule.simplify / 2)]
        candidates = [
            (each, abs(each.area - exact.area) <= geojson.CHANGE * exact.area) for each in simple
        ] + candidates
    for candidate, is_close in candidates:
        rings = [move(shapely.get_coordinates(ring)) for ring in shapely.get_rings(candidate)]
        polygon = shapely.Polygon(rings[0], rings[1:])
        if is_close and polygon.is_valid and polygon.area > 0:
            return [rings]
    return geojson._repair(rings)


@pytest.mark.skipif(shapely.geos_version < (3, 14), reason="older GEOS simplifies otherwise")
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from([1, 60, 2**16]),
    st.sampled_from([5, 17, 1024]),
)
@settings(max_examples=25, deadline=None)
def test_groups_and_bands_change_nothing(kind, seed, simplify, least, group, band):
    labels, rule = draw(kind, seed), PolygonRule(least, simplify)
    frame = FRAME._replace(width=labels.shape[1], height=labels.shape[0])
    read_rows = lambda y0, y1, step: labels[y0:y1:step, ::step]  # noqa: E731
    expected = {tuple(each.rings[0][0]): make_alone(each, rule) for each in trace(labels, least)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geojson, "_GROUP", group)
        patch.setattr(geojson, "_LARGE", group)  # also those that GEOS usually simplifies
        patch.setattr(regions, "_GROUP", group)
        patch.setattr(regions, "BAND", band)
        made = list(geojson.trace_polygons(read_rows, frame, EXCLUDED, rule))
    assert {tuple(region.rings[0][0]) for region, _ in made} == expected.keys()
    for region, polygons in made:
        for ours, theirs in zip(polygons, expected[tuple(region.rings[0][0])], strict=True):
            for ring, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(ring, other)


@pytest.mark.parametrize(
    "segments,met",
    [
        (((0, 0), (4, 4), (0, 4), (4, 0)), True),  # cross
        (((0, 0), (4, 0), (2, 0), (2, 3)), True),  # an end on the other
        (((0, 0), (4, 0), (4, 0), (4, 3)), False),  # one common end
        (((0, 0), (4, 0), (4, 0), (7, 0)), False),  # in line, one after the other
        (((0, 0), (4, 0), (4, 0), (2, 0)), True),  # one over the other
        (((0, 0), (4, 0), (1, 0), (3, 0)), True),
        (((0, 0), (4, 0), (4, 0), (0, 0)), True),  # the same
        (((0, 0), (4, 0), (0, 1), (4, 1)), False),
        (((0, 0), (4, 4), (3, 0), (4, 1)), False),
    ],
)
def test_segments_meet(segments, met):
    a, b, c, d = (list(point) for point in segments)
    assert meet(a, b, c, d) == meet(c, d, b, a) == met
    found = may_meet(*(np.array([point]) for point in (a, b, c, d)))
    in_line = a[1] == b[1] == c[1] == d[1]  # then it may find too many
    assert found[0] == met or (in_line and found[0])
