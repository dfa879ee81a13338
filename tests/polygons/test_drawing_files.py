"""What is read of the files of labelme and QuPath, and what is refused."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.polygons.drawing_files import (
    encode_png,
    make_box,
    make_feature,
    make_shape,
    write_geojson,
    write_labelme,
)
from wsss_jax.errors import InputError
from wsss_jax.polygons import drawings
from wsss_jax.polygons.shapes import Window, paint

SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5]]


def paint_file(path, size=(20, 16)):
    drawing = drawings.read_drawing(path)
    drawn = [(shape, number) for number, shape in enumerate(drawing.shapes, start=1)]
    return paint(drawn, Window(*size), 0), drawing


def test_every_shape_of_labelme_with_an_area(tmp_path):
    bitmap = np.zeros((3, 4), np.uint8)
    bitmap[0, 0] = bitmap[2, 3] = 1
    shapes = [
        make_shape("a", SQUARE),
        make_shape("b", [[12, 6], [7, 2]], "rectangle"),
        make_shape("c", [[16, 4], [16, 6]], "circle"),
        make_shape("d", [[2, 10], [5, 12]], "mask", mask=encode_png(bitmap)),
        make_shape("e", [[10, 10], [14, 10], [14, 12], [10, 12]], "oriented_rectangle"),
        make_shape("f", [[15, 10], [19, 10], [19, 12], [15, 12]], "rectangle"),
    ]
    mask, drawing = paint_file(write_labelme(tmp_path / "a.json", shapes))
    expected = np.zeros((16, 20), np.uint8)
    expected[1:5, 1:5] = 1
    expected[2:6, 7:12] = 2
    y, x = np.mgrid[:16, :20] + 0.5
    expected[np.hypot(x - 16, y - 4) < 2] = 3
    expected[10, 2] = expected[12, 5] = 4
    expected[10:12, 10:14] = 5
    expected[10:12, 15:19] = 6
    np.testing.assert_array_equal(mask, expected)
    assert [shape.label for shape in drawing.shapes] == list("abcdef")
    assert drawing.image.size == (20, 16) and not drawing.left_out


def test_shapes_without_area_are_counted(tmp_path):
    shapes = [
        make_shape("a", [[1, 1]], "point"),
        make_shape("a", [[1, 1], [2, 2]], "line"),
        make_shape("a", [[1, 1], [2, 2], [3, 5]], "linestrip"),
        make_shape("a", [[1, 1], [2, 2], [3, 5]], "points"),
        make_shape("a", [[1, 1], [4, 2]], "line"),
        make_shape("a", [[1, 1], [1, 4]], "rectangle"),
        make_shape("a", SQUARE, None),  # as old versions wrote polygons
    ]
    _, drawing = paint_file(write_labelme(tmp_path / "a.json", shapes))
    assert len(drawing.shapes) == 1
    assert drawing.left_out == {
        "point": 1,
        "line": 2,
        "linestrip": 1,
        "points": 1,
        "rectangle without area": 1,
    }


def test_a_bitmap_that_reaches_beyond_the_image(tmp_path):
    shape = make_shape("a", [[-2, 14], [1, 17]], "mask", mask=encode_png(np.ones((4, 4), np.uint8)))
    mask, _ = paint_file(write_labelme(tmp_path / "a.json", [shape]))
    assert mask.sum() == 4 and mask[14:, :2].all()


BAD_LABELME = {
    "no list": ("shapes", "shapes is not a list"),
    "no label": ([{"points": SQUARE}], "shape 1 has no label"),
    "type": ([make_shape("a", SQUARE, "blob")], r"shape 1 \('a'\) is of the unknown type 'blob'"),
    "no points": ([make_shape("a", None)], r"shape 1 \('a'\) has no list of points"),
    "text": ([make_shape("a", [["1", 2], [3, 4], [5, 6]])], r"has \['1', 2\] as a point"),
    "far": ([make_shape("a", [[1, 2], [3, 1e300], [5, 6]])], r"has \[3, 1e\+300\] as a point"),
    "two corners": ([make_shape("a", [[1, 1], [2, 2], [1, 1]])], "a ring of 2 corners"),
    "circle": ([make_shape("a", SQUARE, "circle")], "a circle of 4 points, not 2"),
    "rectangle": ([make_shape("a", SQUARE[:3], "rectangle")], "a rectangle of 3 points"),
    "no bitmap": ([make_shape("a", SQUARE[:2], "mask")], "has no bitmap in mask"),
    "no base64": ([make_shape("a", SQUARE[:2], "mask", mask="*a")], "is not base64"),
    "no png": (
        [make_shape("a", SQUARE[:2], "mask", mask="abcd")],
        r"mask of shape 1 \('a'\): .*PNG",
    ),
    "size": (
        [make_shape("a", [[0, 0], [5, 5]], "mask", mask=encode_png(np.ones((3, 3), np.uint8)))],
        "is 3x3 pixels, but its points are 6x6 apart",
    ),
}


@pytest.mark.parametrize(("shapes", "words"), BAD_LABELME.values(), ids=BAD_LABELME)
def test_bad_files_of_labelme(tmp_path, shapes, words):
    path = write_labelme(tmp_path / "a.json", shapes)
    with pytest.raises(InputError, match=rf"a\.json: .*{words}.*[a-z]$") as caught:
        drawings.read_drawing(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"imageWidth": "20"}, "imageWidth and imageHeight are '20' and 16"),
        ({"imageHeight": 0}, "20 and 0, not numbers"),
        ({"imageHeight": None}, "20 and None"),
        ({"imageData": 3}, "imageData is not a text"),
        ({"imagePath": ["a"]}, "imagePath is not a text"),
    ],
)
def test_bad_fields_of_labelme(tmp_path, fields, words):
    path = write_labelme(tmp_path / "a.json", [], **fields)
    with pytest.raises(InputError, match=rf"a\.json: .*{words}"):
        drawings.read_drawing(path)


def test_geometries_of_qupath(tmp_path):
    features = [
        make_feature("a", [make_box(1, 1, 9, 9), make_box(3, 3, 6, 6)]),
        make_feature("b", [[make_box(10, 1, 12, 3)], [make_box(14, 1, 16, 3)]], "MultiPolygon"),
        make_feature("c", [make_box(1, 10, 4, 12)[:-1]]),  # not closed
        make_feature("d", []),
    ]
    parts = [
        {"type": "Polygon", "coordinates": [make_box(10, 10, 13, 13)]},
        {"type": "LineString", "coordinates": [[0, 0], [1, 1]]},
        {
            "type": "GeometryCollection",
            "geometries": [{"type": "Polygon", "coordinates": [make_box(15, 10, 16, 13)]}],
        },
    ]
    features[3]["geometry"] = {"type": "GeometryCollection", "geometries": parts}
    mask, drawing = paint_file(write_geojson(tmp_path / "a.geojson", features))
    expected = np.zeros((16, 20), np.uint8)
    expected[1:9, 1:9] = 1
    expected[3:6, 3:6] = 0
    expected[1:3, 10:12] = expected[1:3, 14:16] = 2
    expected[10:12, 1:4] = 3
    expected[10:13, 10:13] = expected[10:13, 15:16] = 4
    np.testing.assert_array_equal(mask, expected)
    assert drawing.left_out == {"LineString": 1} and drawing.image is None


def test_what_has_no_area_in_geojson_is_counted(tmp_path):
    features = [
        make_feature("a", [1, 1], "Point"),
        make_feature("a", [[1, 1], [2, 2]], "MultiPoint"),
        make_feature("a", [make_box(1, 1, 1, 4)]),
        make_feature("a", [], geometry=None),
        make_feature("a", []),
    ]
    _, drawing = paint_file(write_geojson(tmp_path / "a.geojson", features))
    assert not drawing.shapes
    assert drawing.left_out == {
        "Point": 1,
        "MultiPoint": 1,
        "polygon without area": 1,
        "feature without geometry": 1,
    }


def test_collections_lists_and_packed_files(tmp_path):
    feature = make_feature("a", [make_box(1, 1, 5, 5)])
    collection = {"type": "FeatureCollection", "features": [feature]}
    for name, content in (("c", collection), ("l", [feature]), ("f", feature), ("e", [])):
        text = json.dumps(content)
        (tmp_path / f"{name}.geojson").write_text(text, encoding="utf-8-sig")
        (tmp_path / f"{name}.geojson.gz").write_bytes(gzip.compress(text.encode()))
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / ".hidden.json").write_text("{}")
    found = drawings.find_files(str(tmp_path), drawings.is_drawing, "files")
    assert len(found) == 12
    for path in found:
        assert len(drawings.read_drawing(path).shapes) == (drawings.get_stem(path) != "e")


@pytest.mark.parametrize(
    ("classification", "label"),
    [
        ({"name": "Tumor", "color": [200, 0, 0]}, "Tumor"),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor"),
        ({"names": ["Tumor", "Positive"]}, "Tumor: Positive"),
        ({"name": "Positive", "parentClass": {"name": "Tumor"}}, "Tumor: Positive"),
        (" Tumor ", "Tumor"),
        (None, ""),
        ({"name": None}, ""),
    ],
)
def test_spellings_of_a_class(tmp_path, classification, label):
    feature = make_feature(None, [make_box(1, 1, 5, 5)])
    feature["properties"]["classification"] = classification
    (shape,) = drawings.read_drawing(write_geojson(tmp_path / "a.geojson", [feature])).shapes
    assert shape.label == label


BAD_GEOJSON = {
    "feature": (["a"], "feature 1 is not a feature"),
    "class": ([make_feature(3, [make_box(1, 1, 2, 2)])], "feature 1 has a class without a name"),
    "kind": ([make_feature("a", [], "Circle")], r"feature 1 \('a'\) has no geometry of GeoJSON"),
    "coordinates": ([make_feature("a", None)], "has no coordinates"),
    "rings": ([make_feature("a", [3], "MultiPolygon")], "has a polygon without rings"),
    "ring": ([make_feature("a", [[[1, 1], [2, 2], [1, 1]]])], "a ring of 2 corners"),
    "point": ([make_feature("a", [[[1], [2, 2], [1, 1]]])], r"has \[1\] as a point"),
    "nothing": ([make_feature(None, [[[1, 1]]])], r"feature 1 \(without class\) has a ring of 1"),
}


@pytest.mark.parametrize(("features", "words"), BAD_GEOJSON.values(), ids=BAD_GEOJSON)
def test_bad_geojson(tmp_path, features, words):
    path = write_geojson(tmp_path / "a.geojson", features)
    with pytest.raises(InputError, match=rf"a\.geojson: .*{words}"):
        drawings.read_drawing(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b"\xff{}", "not JSON"),
        ("a.json", b'{"shapes": [NaN]}', "NaN is not a number"),
        pytest.param("a.json", b"[" * 10**5, "not JSON", id="deep"),
        ("a.json", b"{}", "neither a file of labelme"),
        ("a.json", b'["a"]', "neither a file of labelme"),
        ("a.geojson", b'{"type": "FeatureCollection"}', "features is not a list"),
        ("a.geojson.gz", b"{}", "cannot be read"),
        pytest.param("a.geojson.gz", gzip.compress(b"{}" * 999)[:-9], "cannot be read", id="cut"),
    ],
)
def test_files_that_are_neither(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: .*{words}"):
        drawings.read_drawing(tmp_path / name)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"a\.json: a folder"):
        drawings.read_drawing(tmp_path / "a.json")
    for text in (str(tmp_path), str(tmp_path / "*.json"), " , "):
        with pytest.raises(InputError, match=r"config\.files"):
            drawings.find_files(text, drawings.is_drawing, "files of shapes")


def list_places(content, place=()):
    """The places of all values in a JSON content, as keys and indices from the outside in."""
    yield place
    if isinstance(content, dict | list):
        inner = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in inner:
            yield from list_places(value, (*place, key))


def put(content, place, value):
    """The content with another value at a place."""
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = put(content[place[0]], place[1:], value)
    return copy


JUNK = [None, True, -1, 1e308, "", "mask", "Polygon", [], [[]], {}, {"type": "Feature"}]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_wrong_is_one_line(tmp_path_factory, data):
    bitmap = encode_png(np.ones((2, 2), np.uint8))
    shapes = [make_shape("a", SQUARE), make_shape("b", SQUARE[:2], "mask", mask=bitmap)]
    feature = make_feature("a", [[make_box(1, 1, 5, 5), make_box(2, 2, 3, 3)]], "MultiPolygon")
    collection = {"type": "GeometryCollection", "geometries": [feature["geometry"]]}
    path = tmp_path_factory.getbasetemp() / "junk.json"
    write_labelme(path, shapes)
    contents = [json.loads(path.read_text()), [feature, {**feature, "geometry": collection}]]
    content = data.draw(st.sampled_from(contents))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(list_places(content))))
        content = put(content, place, data.draw(st.sampled_from(JUNK)))
    path.write_text(json.dumps(content))
    try:
        drawing = drawings.read_drawing(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        paint([(shape, 1) for shape in drawing.shapes], Window(20, 16), 0)
