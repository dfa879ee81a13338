"""Reads GeoJSON as QuPath 0.6 does, and is as strict: what would fail or change there fails here.

By its PathIO, QuPathTypeAdapters, ROITypeAdapters, GsonTools and GeometryTools.
"""

import json
import re
import uuid
from typing import Any, NamedTuple

import numpy as np
import shapely

GRID = 0.01  # pixels, of QuPath's geometries; it writes as many decimals
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # as java.util.UUID writes it


class Annotation(NamedTuple):
    """What QuPath makes of a feature.

    Attributes:
      identifier: of the object.
      class_name, color: of the classification; a derived class is "Base: derived".
      locked: whether it can be moved.
      measurements: name -> number.
      shape: the geometry, on QuPath's grid.
    """

    identifier: uuid.UUID
    class_name: str
    color: tuple[int, int, int]
    locked: bool
    measurements: dict[str, float]
    shape: shapely.Geometry


def read_annotations(text: str) -> list[Annotation]:
    """Reads the objects of a file that is dropped on a slide."""
    collection = json.loads(text)
    assert collection["type"] == "FeatureCollection"
    annotations = [_read_feature(feature) for feature in collection["features"]]
    assert len({each.identifier for each in annotations}) == len(annotations)  # else one replaces
    return annotations


def _read_feature(feature: dict[str, Any]) -> Annotation:
    assert feature["type"] == "Feature"
    properties = feature["properties"]
    # Other texts are read as annotations, too, after a warning.
    assert properties["objectType"] == "annotation"
    assert _UUID.fullmatch(feature["id"])
    assert type(properties["isLocked"]) is bool
    names, color = _read_class(properties["classification"])
    measurements = properties["measurements"]
    assert all(type(value) in (int, float) for value in measurements.values())
    return Annotation(
        uuid.UUID(feature["id"]),
        ": ".join(names),
        color,
        properties["isLocked"],
        {name: float(value) for name, value in measurements.items()},
        _read_shape(feature["geometry"]),
    )


def _read_class(classification: dict[str, Any]) -> tuple[list[str], tuple[int, int, int]]:
    """Reads name or names, and color; other members make it an object of QuPath before 0.4."""
    assert classification.keys() in ({"name", "color"}, {"names", "color"})
    names = classification.get("names") or classification["name"].split(":")
    names = [name.strip() for name in names]
    assert all(names)
    color = classification["color"]
    assert len(color) == 3 and all(type(value) is int and 0 <= value <= 255 for value in color)
    return names, tuple(color)


def _read_shape(geometry: dict[str, Any]) -> shapely.Geometry:
    """Reads a geometry, which must be valid and of the same area on QuPath's grid."""
    # A plane or an ellipse would be further members.
    assert geometry.keys() == {"type", "coordinates"}
    parts = geometry["coordinates"]
    assert geometry["type"] in ("Polygon", "MultiPolygon")
    if geometry["type"] == "Polygon":
        parts = [parts]
    polygons = [_read_polygon(rings) for rings in parts]
    assert polygons
    assert geometry["type"] == "Polygon" or len(polygons) > 1  # else the kind would change
    shape = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    assert shape.is_valid
    reduced = shapely.set_precision(shape, GRID, mode="pointwise")
    assert reduced.is_valid and reduced.geom_type == shape.geom_type
    assert all(part.area > 0 for part in shapely.get_parts(reduced))
    np.testing.assert_allclose(reduced.area, shape.area, rtol=1e-9)
    return reduced


def _read_polygon(rings: list[list[list[float]]]) -> shapely.Polygon:
    for ring in rings:
        # JTS makes no ring of others: "Invalid number of points", "Points do not form a closed".
        assert len(ring) >= 4 and ring[0] == ring[-1]
        assert all(len(position) == 2 for position in ring)
        assert all(type(value) in (int, float) for position in ring for value in position)
        corners = np.array(ring, np.float64)
        np.testing.assert_array_equal(corners, np.round(corners, 2))  # as QuPath writes them
    return shapely.Polygon(rings[0], rings[1:])


def keep_single_precision(shape: shapely.Geometry) -> shapely.Geometry:
    """Returns what is left of a polygon in QuPath: of one without holes, float32 corners."""
    if shape.geom_type != "Polygon" or shape.interiors:
        return shape
    corners = shapely.get_coordinates(shape).astype(np.float32).astype(np.float64)
    return shapely.set_precision(shapely.Polygon(corners), GRID, mode="pointwise")
