import gzip
import json
import uuid

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio import features

from configs import base_slides
from tests.slides import qupath_reader
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import geojson, regions
from wsss_jax.slides.outputs.geojson import PolygonRule

NAMES = ["TE", "Leukozyten µ", "TAS"]
LEGEND = Legend(NAMES, [(205, 51, 51), (0, 255, 0), (65, 105, 225), (255, 255, 255)])
EXACT = PolygonRule()
MAPS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 0, 1, 2, 3]))
)


def check_rfc7946(text):
    """What RFC 7946 asks of the members, and what QuPath 0.6 does (see `qupath_reader`)."""
    collection = json.loads(text)
    assert collection.keys() == {"type", "features"} and collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert feature.keys() == {"type", "id", "properties", "geometry"}
        assert feature["type"] == "Feature" and isinstance(feature["id"], str)
        kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
        for rings in [coordinates] if kind == "Polygon" else coordinates:
            for number, ring in enumerate(rings):
                assert shapely.LinearRing(ring).is_ccw == (number == 0)
    return qupath_reader.read_annotations(text)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes a map in bands of `band` rows, or fewer, and returns the features.

    `limits` are those of `regions`, by name; `frame` has what differs from a map of the slide's own
    pixels, half a micrometer wide. `write.covered` is what `write_geojson` returned,
    `write.annotations` what QuPath reads.
    """
    path = tmp_path_factory.mktemp("geojson") / "map.geojson"

    def write(labels, *, rule=EXACT, slide_id="a", limits=None, editable=False, **frame):
        labels = np.asarray(labels, np.uint8)
        height, width = labels.shape
        given = {"mpp": 0.5, "scale": (1.0, 1.0), "slide_size": (10**6, 10**6)} | frame
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (limits or {}).items():
                patch.setattr(regions, name, value)
            write.covered = geojson.write_geojson(
                path,
                lambda y0, y1, step: labels[y0:y1:step, ::step],
                MapFrame(width, height, **given),
                LEGEND,
                slide_id,
                rule,
                editable=editable,
            )
        text = path.read_text(encoding="utf-8")
        write.annotations = check_rfc7946(text)
        return json.loads(text)["features"]

    return write


def draw(drawn_features, shape, scale=1.0, origin=(0, 0)):
    """The label map that the features draw; none may draw on another."""
    labels, covered = np.full(shape, 3, np.uint8), np.zeros(shape, int)
    for feature in drawn_features:
        rings = [
            [((x + origin[0]) / scale, (y + origin[1]) / scale) for x, y in ring]
            for ring in feature["geometry"]["coordinates"]
        ]
        inside = features.rasterize([{"type": "Polygon", "coordinates": rings}], shape) == 1
        labels[inside] = NAMES.index(feature["properties"]["classification"]["name"])
        covered += inside
    assert covered.max(initial=0) <= 1
    return labels


def index_by_id(written):
    by_id = {feature["id"]: feature for feature in written}
    assert len(by_id) == len(written)
    return by_id


@given(
    MAPS,
    st.integers(1, 6),
    st.sampled_from([1, 9, 2**19]),
    st.sampled_from([1.0, 2.0, 3.9764]),
    st.sampled_from([0, 7]),
)
@settings(max_examples=60, deadline=None)
def test_polygons_are_the_map_and_do_not_depend_on_the_bands(
    write, labels, band, edges, scale, offset
):
    origin = (offset, 2 * offset)
    frame = {"scale": (scale, scale), "origin": origin}
    written = write(labels, limits={"BAND": band, "EDGES": edges}, **frame)
    np.testing.assert_array_equal(draw(written, labels.shape, scale, origin), labels)
    assert index_by_id(written) == index_by_id(write(labels, **frame))
    for feature in written:
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        area = feature["properties"]["measurements"][geojson.AREA]
        assert area == pytest.approx(polygon.area / scale**2 * 0.25, rel=0.01)
    expected = features.shapes(labels, mask=labels != 3, connectivity=4)
    assert len(written) == len(list(expected))


@given(MAPS, st.integers(1, 6), st.floats(0.5, 3), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_simplified_polygons_are_valid_and_keep_the_measured_area(
    write, labels, band, tolerance, least
):
    exact = index_by_id(write(labels))
    area = least * 0.25
    rule = PolygonRule(area, tolerance)
    simple = write(labels, rule=rule, limits={"BAND": band}, scale=(1.9876, 1.9876))
    simple = index_by_id(simple)
    assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in simple.values())
    measured = {key: exact[key]["properties"]["measurements"][geojson.AREA] for key in exact}
    assert simple.keys() == {key for key in exact if measured[key] >= area}
    for key, feature in simple.items():
        assert feature["properties"] == exact[key]["properties"]


@given(MAPS, st.integers(1, 6), st.integers(0, 40), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_regions_that_are_cut_still_make_up_the_map(write, labels, band, corners, least):
    limits = {"BAND": band, "CORNERS": corners}
    exact = write(labels, limits=limits)
    np.testing.assert_array_equal(draw(exact, labels.shape), labels)
    # A region that is large enough is there to the last pixel, on both sides of a cut.
    kept = np.full(labels.shape, 3, np.uint8)
    for geometry, value in features.shapes(labels, mask=labels != 3, connectivity=4):
        if shapely.geometry.shape(geometry).area >= least:
            kept[features.rasterize([geometry], labels.shape) == 1] = value
    written = write(labels, rule=PolygonRule(least * 0.25), limits=limits)
    drawn = draw(written, labels.shape)
    np.testing.assert_array_equal(drawn[kept != 3], kept[kept != 3])
    area = sum(feature["properties"]["measurements"][geojson.AREA] for feature in written)
    assert area == pytest.approx((kept != 3).sum() * 0.25)


@given(
    MAPS,
    st.floats(0.002, 9),
    st.floats(0.002, 9),
    st.floats(0, 50),
    st.floats(0, 4),
    st.sampled_from([0, 0.5, 3]),
)
@settings(max_examples=150, deadline=None)
def test_any_scale_gives_polygons_that_qupath_reads(write, labels, x, y, offset, tolerance, area):
    rule = PolygonRule(area, tolerance)
    covered = np.zeros(3)
    for feature in write(labels, rule=rule, scale=(x, y), origin=(offset, -offset)):
        value = NAMES.index(feature["properties"]["classification"]["name"])
        covered[value] += shapely.geometry.shape(feature["geometry"]).area
    np.testing.assert_allclose(write.covered, covered / (x * y), atol=1e-6, rtol=1e-6)


@given(MAPS, st.floats(1, 9), st.floats(0, 3), st.integers(90_000, 300_000))
@settings(max_examples=60, deadline=None)
def test_polygons_stay_valid_in_single_precision(write, labels, scale, tolerance, far):
    """QuPath keeps the corners of polygons without holes as float32: 1/64 pixel at 200,000."""
    write(
        labels,
        rule=PolygonRule(simplify=tolerance),
        scale=(scale, scale),
        origin=(-far, -far),
    )
    for annotation in write.annotations:
        kept = qupath_reader.keep_single_precision(annotation.shape)
        assert kept.is_valid and kept.area == pytest.approx(annotation.shape.area, rel=0.1)


def test_qupath_reads_what_was_written(write):
    labels = np.array([[0, 0, 1], [0, 2, 3]])
    write(labels, scale=(4.0, 4.0))
    read = {each.class_name: each for each in write.annotations}
    assert read.keys() == set(NAMES) and all(each.locked for each in write.annotations)
    assert [read[name].color for name in NAMES] == LEGEND.palette[:3]
    assert [read[name].shape.area for name in NAMES] == [48, 16, 16]
    assert read["TAS"].measurements == {geojson.AREA: 0.25}


@pytest.mark.parametrize(
    "change",
    [
        lambda feature: feature.update(id="1"),
        lambda feature: feature["properties"].update(objectType="cell"),
        lambda feature: feature["properties"]["classification"].update(color=[0, 0, 256]),
        lambda feature: feature["properties"]["classification"].update(colorRGB=1),
        lambda feature: feature["properties"]["measurements"].update(a="1"),
        lambda feature: feature["geometry"]["coordinates"][0].pop(),
        lambda feature: feature["geometry"].update(coordinates=[]),
        lambda feature: feature["geometry"]["coordinates"][0].reverse() or feature.pop("type"),
        lambda feature: feature["geometry"].update(
            coordinates=[[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]  # crosses itself
        ),
        lambda feature: feature["geometry"].update(
            coordinates=[[[0, 0], [0.001, 0], [0.001, 0.001], [0, 0]]]
        ),
    ],
)
def test_the_reader_refuses_what_qupath_would_not_keep(write, change):
    collection = {"type": "FeatureCollection", "features": write([[0]])}
    change(collection["features"][0])
    with pytest.raises((AssertionError, KeyError, IndexError, ValueError)):
        qupath_reader.read_annotations(json.dumps(collection))


def test_compressed_files_are_the_same_each_time(tmp_path):
    def write_map(name):
        labels = np.random.default_rng(0).integers(0, 4, (60, 60)).astype(np.uint8)
        frame = MapFrame(60, 60, 0.5, (1.0, 1.0), (60, 60))
        path = tmp_path / name
        read_rows = lambda y0, y1, step: labels[y0:y1:step, ::step]  # noqa: E731
        covered = geojson.write_geojson(path, read_rows, frame, LEGEND, "a", EXACT)
        return path.read_bytes(), covered.tolist()

    plain, first = write_map("a.geojson")
    packed, second = write_map("a.geojson.gz")
    assert gzip.decompress(packed) == plain and first == second
    assert len(packed) < len(plain) / 5
    assert packed[3:8] == bytes(5)  # no name, no time
    assert write_map("other.geojson.gz") == (packed, first)
    geojson.compress(tmp_path / "a.geojson", tmp_path / "third.gz")
    assert (tmp_path / "third.gz").read_bytes() == packed


def test_rings_that_rounding_joins_are_repaired(write):
    labels = np.zeros((6, 40), np.uint8)
    labels[1:5, 1::2] = 3  # holes of a pixel: at 0.004 pixels a pixel many of them collapse
    (feature,) = write(labels, scale=(0.004, 0.004))
    assert feature["geometry"]["type"] in ("Polygon", "MultiPolygon")
    bridge = np.zeros((6, 9), np.uint8)
    bridge[:, 3:6] = 3
    bridge[2, 3:6] = 0  # becomes a line
    (feature,) = write(bridge, scale=(1, 0.004))
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert write.covered[0] * 0.004 == pytest.approx(2 * 3 * 0.02)
    assert write(np.zeros((1, 5)), scale=(1, 0.004)) == []  # no area is left


def test_the_default_keeps_small_classes(write):
    """Two thirds one class, two in grains of some 40 micrometers: all keep what they have."""
    rng, defaults = np.random.default_rng(0), base_slides.segment("", "", "").geojson
    fields = [cv2.GaussianBlur(rng.normal(size=(400, 400)), (0, 0), 5) for _ in NAMES]
    fields = [field / field.std() for field in fields]
    labels = np.argmax(np.stack(fields) + np.array([1.3, -0.3, 0])[:, None, None], axis=0)
    counts = np.bincount(labels.ravel(), minlength=3)
    assert counts.argmax() == 0 and counts.min() < 0.15 * labels.size
    write(labels, rule=PolygonRule(defaults.min_area, defaults.simplify), mpp=1.0)
    np.testing.assert_allclose(write.covered / counts, 1, atol=0.05)
    write(labels, rule=PolygonRule(400.0, 1.0), mpp=1.0)  # a coarse rule loses some
    assert (write.covered / counts).min() < 0.9


def test_small_regions_are_not_simplified_away(write):
    labels = np.full((40, 40), 3)
    labels[::4, ::4] = labels[1::4, ::4] = 0
    write(labels, rule=PolygonRule(simplify=1.0))
    assert write.covered[0] == 200


def test_a_region_is_cut_where_it_has_too_many_corners(write):
    comb = np.where(np.arange(41) % 2, 0, 3)[None].repeat(30, axis=0)
    comb[0] = 0  # a back with 20 teeth: 85 points, and 5 of each tooth in a further band
    counts = {
        corners: len(write(comb, limits={"BAND": 10, "CORNERS": corners}))
        for corners in (185, 184, 84)
    }
    # Cut below the second band; or below the first, and below the second 4 of the 20 teeth.
    assert counts == {185: 1, 184: 1 + 20, 84: 1 + 20 + 4}


def test_a_region_that_rounding_would_make_invalid_is_not_simplified(write, monkeypatch):
    monkeypatch.setattr(geojson, "DECIMALS", 0)
    labels = np.where(np.random.default_rng(0).random((40, 40)) < 0.65, 0, 3)
    written = write(labels, rule=PolygonRule(simplify=2.0), scale=(1.2, 1.2))
    assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in written)


def test_a_feature_is_what_qupath_reads(write):
    (feature,) = write([[3, 3, 3], [3, 1, 1]], scale=(4.0, 4.0), origin=(1.5, 2), mpp=2)
    assert uuid.UUID(feature.pop("id")).version == 5
    assert feature == {
        "type": "Feature",
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "Leukozyten µ", "color": [0, 255, 0]},
            "isLocked": True,
            "measurements": {"Area um^2 (label map)": 8.0},
        },
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[2.5, 2], [10.5, 2], [10.5, 6], [2.5, 6], [2.5, 2]]],
        },
    }
    assert write([[1]], slide_id="b")[0]["id"] != write([[1]], slide_id="a")[0]["id"]


RING = np.pad(np.full((4, 4), 3), 2, constant_values=0)


@pytest.mark.parametrize("band", [1, 3, 1024])
def test_a_ring_keeps_its_hole(write, band):
    (feature,) = write(RING, limits={"BAND": band})
    outline, hole = feature["geometry"]["coordinates"]
    assert (outline, hole) == (
        [[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]],
        [[2, 2], [2, 6], [6, 6], [6, 2], [2, 2]],
    )


@pytest.mark.parametrize("band", [1, 1024])
def test_corner_contact_does_not_join(write, band):
    assert len(write([[0, 3], [3, 0]], limits={"BAND": band})) == 2
    assert len(write([[0, 3, 0], [0, 0, 0]], limits={"BAND": band})) == 1


def test_small_holes_are_filled_and_what_lies_in_them_left_out(write):
    labels = RING.copy()
    labels[3:5, 3:5] = 1
    kept = write(labels, rule=PolygonRule(4 * 0.25))
    assert [len(feature["geometry"]["coordinates"]) for feature in kept] == [1, 2]
    (alone,) = write(labels, rule=PolygonRule(17 * 0.25))
    assert len(alone["geometry"]["coordinates"]) == 1
    assert alone["properties"]["measurements"][geojson.AREA] == 48 * 0.25


def test_nothing_but_background(write):
    assert write(np.full((5, 4), 3), limits={"BAND": 2}) == []


def test_any_number_of_classes():
    labels = np.array([[254, 255], [254, 0]], np.uint8)
    found = regions.find_regions(
        lambda y0, y1, step: labels[y0:y1:step, ::step], 2, 2, excluded=255
    )
    assert sorted((region.value, region.pixels) for region in found) == [(0, 1), (254, 2)]


def test_polygons_end_with_the_slide(write):
    """A map's last pixels may reach half a pixel beyond it."""
    (feature,) = write(np.zeros((3, 4)), scale=(2.5, 2.0), origin=(1, 0), slide_size=(9, 6))
    (ring,) = feature["geometry"]["coordinates"]
    assert np.max(ring, axis=0).tolist() == [8, 6] and np.min(ring, axis=0).tolist() == [-1, 0]
    assert write.covered[0] == pytest.approx(9 * 6 / 5)


def test_annotations_to_correct_are_unlocked_and_not_measured(write):
    labels = np.zeros((4, 4), np.uint8)
    (locked,), (editable,) = write(labels), write(labels, editable=True)
    assert locked["properties"]["isLocked"] and geojson.AREA in locked["properties"]["measurements"]
    assert not editable["properties"]["isLocked"] and not editable["properties"]["measurements"]
    assert editable["geometry"] == locked["geometry"]


def test_squares(tmp_path):
    """In the coordinates of viewers, which begin at the scanned area."""
    squares = [
        geojson.Square("a_x100_y50", 100, 50, 448.9, 448.9, {"white": 0.25}),
        geojson.Square("a_x7_y8 µ", 7, 8, 10, 20, {}),
    ]
    path = tmp_path / "kept.geojson"
    geojson.write_squares(path, squares, "patch", (0, 114, 178), origin=(5, 6))
    text = path.read_text("utf-8")
    check_rfc7946(text)
    collection = json.loads(text)
    first, second = collection["features"]
    assert first["properties"] == {
        "objectType": "annotation",
        "name": "a_x100_y50",
        "classification": {"name": "patch", "color": [0, 114, 178]},
        "isLocked": True,
        "measurements": {"white": 0.25},
    }
    assert shapely.geometry.shape(first["geometry"]).bounds == (95, 44, 543.9, 492.9)
    assert shapely.geometry.shape(second["geometry"]).bounds == (2, 2, 12, 22)
    assert first["id"] != second["id"]
    geojson.write_squares(path, [], "patch", (0, 114, 178))
    assert json.loads(path.read_text()) == {"type": "FeatureCollection", "features": []}
