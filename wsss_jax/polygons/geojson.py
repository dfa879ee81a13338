"""Reads the annotations of QuPath, which are GeoJSON."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import shapely

from wsss_jax.errors import InputError
from wsss_jax.polygons.shapes import Drawing, Shape, make_ring, read_points

FEATURES = ("FeatureCollection", "Feature")
IGNORE = "Ignore*"  # QuPath's class of what belongs to no class
_DEEPEST = 32  # geometry collections in one another
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


def is_geojson(content: Any) -> bool:
    """Whether the content of a JSON file is GeoJSON: features, or a bare list of them."""
    first = content[0] if isinstance(content, list) and content else content
    return content == [] or (isinstance(first, Mapping) and first.get("type") in FEATURES)


def read_geojson(content: Any, path: Path) -> Drawing:
    """Reads the shapes of a FeatureCollection, a Feature, or a list of features.

    Args:
      content: of the file, for which `is_geojson` holds.
      path: of the file, for messages.

    Raises:
      InputError: names the file and the feature that is not as QuPath writes it.
    """
    features = content
    if isinstance(content, Mapping):
        is_one = content["type"] == "Feature"
        features = [content] if is_one else content.get("features")
    if not isinstance(features, list):
        raise InputError(f"{path}: features is not a list; export it again from QuPath")
    drawing = Drawing([], Counter(), slide_size=_read_size(content, path))
    for number, feature in enumerate(features, start=1):
        where = f"feature {number}"
        if not isinstance(feature, Mapping) or feature.get("type") != "Feature":
            raise InputError(f"{path}: {where} is not a feature; export it again from QuPath")
        label = _read_label(feature, path, where)
        where += f" ({label!r})" if label else " (without class)"
        polygons = list(_find_polygons(feature.get("geometry"), drawing.left_out, path, where))
        if any(polygon.area for polygon in polygons):
            drawing.shapes.append(Shape(where, label, polygons))
        elif polygons:
            drawing.left_out["polygon without area"] += 1
    return drawing


def _read_size(content: Any, path: Path) -> tuple[int, int] | None:
    """Reads the size of the slide: {"image": {"width": ..., "height": ...}} beside the features."""
    image = content.get("image") if isinstance(content, Mapping) else None
    if not isinstance(image, Mapping):
        return None  # of another program
    width, height = image.get("width"), image.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise InputError(f"{path}: image has no width and height; export it again from QuPath")
    return width, height


def _read_label(feature: Mapping[str, Any], path: Path, where: str) -> str:
    """Reads the class of a feature; "" if it has none.

    QuPath writes {"name": "Tumor"}, of a class derived from others {"names": ["Tumor",
    "Positive"]}, which it shows as "Tumor: Positive", and of these once wrote {"name": "Positive",
    "parentClass": {"name": "Tumor"}}. Other programs write the name itself.
    """
    properties = feature.get("properties")
    value = properties.get("classification") if isinstance(properties, Mapping) else None
    names: list[Any] = []
    while isinstance(value, Mapping) and len(names) < _DEEPEST:
        own = value.get("names", value.get("name"))
        names = [*(own if isinstance(own, list) else [own]), *names]
        value = value.get("parentClass")
    if value is not None:
        names = [value, *names]
    names = [name for name in names if name is not None]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {where} has a class without a name; give it one in QuPath")
    return ": ".join(names).strip()


def _find_polygons(
    geometry: Any, left_out: Counter[str], path: Path, where: str, depth: int = 0
) -> Iterator[shapely.Polygon]:
    """Yields the polygons of a geometry, counts what has no area."""
    if geometry is None:
        left_out["feature without geometry"] += 1
        return
    kind = geometry.get("type") if isinstance(geometry, Mapping) else None
    if kind in _WITHOUT_AREA:
        left_out[kind] += 1
        return
    field = "geometries" if kind == "GeometryCollection" else "coordinates"
    if kind not in ("Polygon", "MultiPolygon", "GeometryCollection") or depth > _DEEPEST:
        raise InputError(f"{path}: {where} has no geometry of GeoJSON; export it again from QuPath")
    parts = geometry.get(field)
    if not isinstance(parts, list):
        raise InputError(f"{path}: {where} has no {field}; export it again from QuPath")
    if kind == "GeometryCollection":
        for part in parts:
            yield from _find_polygons(part, left_out, path, where, depth + 1)
        return
    for rings in [parts] if kind == "Polygon" else parts:
        if not isinstance(rings, list):
            raise InputError(f"{path}: {where} has a polygon without rings; draw it again")
        if rings:
            outline, *holes = (make_ring(read_points(r, path, where), path, where) for r in rings)
            yield shapely.Polygon(outline, holes)
