import json
import uuid

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio import features

from wsss_jax.slides import polygons

NAMES = ["TE", "Leukozyten µ", "TAS"]
PALETTE = [(205, 51, 51), (0, 255, 0), (65, 105, 225), (255, 255, 255)]
MAPS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 0, 1, 2, 3]))
)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes a map in bands of `band` rows, or fewer, and returns the features."""
    path = tmp_path_factory.mktemp("polygons") / "map.geojson"

    def write(labels, *, band=1024, edges=2**19, corners=2**18, **fields):
        labels = np.asarray(labels, np.uint8)
        given = {"mpp": 0.5, "scale": 1.0, "offset": (0, 0), "slide_id": "a"} | fields
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(polygons, "BAND", band)
            patch.setattr(polygons, "EDGES", edges)
            patch.setattr(polygons, "CORNERS", corners)
            polygons.write_geojson(
                path,
                lambda y0, y1, step: labels[y0:y1:step, ::step],
                *labels.shape[::-1],
                names=NAMES,
                palette=PALETTE,
                **given,
            )
        collection = json.loads(path.read_text(encoding="utf-8"))
        assert collection["type"] == "FeatureCollection"
        return collection["features"]

    return write


def filled(found, shape, scale=1.0, offset=(0, 0)):
    """The label map that the features draw; none may draw on another."""
    labels, covered = np.full(shape, 3, np.uint8), np.zeros(shape, int)
    for feature in found:
        rings = [
            [((x + offset[0]) / scale, (y + offset[1]) / scale) for x, y in ring]
            for ring in feature["geometry"]["coordinates"]
        ]
        inside = features.rasterize([{"type": "Polygon", "coordinates": rings}], shape) == 1
        labels[inside] = NAMES.index(feature["properties"]["classification"]["name"])
        covered += inside
    assert covered.max(initial=0) <= 1
    return labels


def by_id(found):
    result = {feature["id"]: feature for feature in found}
    assert len(result) == len(found)
    return result


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
    fields = {"scale": scale, "offset": (offset, 2 * offset)}
    found = write(labels, band=band, edges=edges, **fields)
    np.testing.assert_array_equal(filled(found, labels.shape, **fields), labels)
    assert by_id(found) == by_id(write(labels, **fields))
    for feature in found:
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        area = feature["properties"]["measurements"][polygons.AREA]
        assert area == pytest.approx(polygon.area / scale**2 * 0.25, rel=0.01)
    expected = features.shapes(labels, mask=labels != 3, connectivity=4)
    assert len(found) == len(list(expected))


@given(MAPS, st.integers(1, 6), st.floats(0.5, 3), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_simplified_polygons_are_valid_and_keep_the_measured_area(
    write, labels, band, tolerance, least
):
    exact = by_id(write(labels))
    area = least * 0.25
    found = by_id(write(labels, band=band, simplify=tolerance, min_area=area, scale=1.9876))
    assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in found.values())
    measured = {key: exact[key]["properties"]["measurements"][polygons.AREA] for key in exact}
    assert found.keys() == {key for key in exact if measured[key] >= area}
    for key, feature in found.items():
        assert feature["properties"] == exact[key]["properties"]


@given(MAPS, st.integers(1, 6), st.integers(0, 40), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_regions_that_are_cut_still_make_up_the_map(write, labels, band, corners, least):
    options = {"band": band, "corners": corners}
    exact = write(labels, **options)
    np.testing.assert_array_equal(filled(exact, labels.shape), labels)
    # What is as large as asked for is there to the last pixel, on whichever side of a cut it lies.
    kept = np.full(labels.shape, 3, np.uint8)
    for geometry, value in features.shapes(labels, mask=labels != 3, connectivity=4):
        if shapely.geometry.shape(geometry).area >= least:
            kept[features.rasterize([geometry], labels.shape) == 1] = value
    found = write(labels, **options, min_area=least * 0.25)
    drawn = filled(found, labels.shape)
    np.testing.assert_array_equal(drawn[kept != 3], kept[kept != 3])
    area = sum(feature["properties"]["measurements"][polygons.AREA] for feature in found)
    assert area == pytest.approx((kept != 3).sum() * 0.25)


def test_a_region_is_cut_where_it_has_too_many_corners(write):
    comb = np.where(np.arange(41) % 2, 0, 3)[None].repeat(30, axis=0)
    comb[0] = 0  # a back with 20 teeth: 85 points, and 5 of each tooth in a further band
    found = {corners: len(write(comb, band=10, corners=corners)) for corners in (185, 184, 84)}
    # Cut below the second band; or below the first, and below the second 4 of the 20 teeth.
    assert found == {185: 1, 184: 1 + 20, 84: 1 + 20 + 4}


def test_what_rounding_would_spoil_is_not_simplified(write, monkeypatch):
    monkeypatch.setattr(polygons, "DECIMALS", 0)
    labels = np.where(np.random.default_rng(0).random((40, 40)) < 0.65, 0, 3)
    found = write(labels, simplify=2.0, scale=1.2)
    assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in found)


def test_a_feature_is_what_qupath_reads(write):
    (feature,) = write([[3, 3, 3], [3, 1, 1]], scale=4.0, offset=(1.5, 2), mpp=2)
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
            "coordinates": [[[2.5, 2], [2.5, 6], [10.5, 6], [10.5, 2], [2.5, 2]]],
        },
    }
    assert write([[1]], slide_id="b")[0]["id"] != write([[1]], slide_id="a")[0]["id"]


RING = np.pad(np.full((4, 4), 3), 2, constant_values=0)


@pytest.mark.parametrize("band", [1, 3, 1024])
def test_a_ring_keeps_its_hole(write, band):
    (feature,) = write(RING, band=band)
    outline, hole = feature["geometry"]["coordinates"]
    assert (outline, hole) == (
        [[0, 0], [0, 8], [8, 8], [8, 0], [0, 0]],
        [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]],
    )


@pytest.mark.parametrize("band", [1, 1024])
def test_corner_contact_does_not_join(write, band):
    assert len(write([[0, 3], [3, 0]], band=band)) == 2
    assert len(write([[0, 3, 0], [0, 0, 0]], band=band)) == 1


def test_small_holes_are_filled_and_what_lies_in_them_left_out(write):
    labels = RING.copy()
    labels[3:5, 3:5] = 1
    kept = write(labels, min_area=4 * 0.25)
    assert [len(feature["geometry"]["coordinates"]) for feature in kept] == [1, 2]
    (alone,) = write(labels, min_area=17 * 0.25)
    assert len(alone["geometry"]["coordinates"]) == 1
    assert alone["properties"]["measurements"][polygons.AREA] == 48 * 0.25


def test_nothing_but_background(write):
    assert write(np.full((5, 4), 3), band=2) == []


def test_any_number_of_classes():
    labels = np.array([[254, 255], [254, 0]], np.uint8)
    found = polygons.regions(lambda y0, y1, step: labels[y0:y1:step, ::step], 2, 2, excluded=255)
    assert sorted((region.value, region.pixels) for region in found) == [(0, 1), (254, 2)]
