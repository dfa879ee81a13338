"""The JSON files of labelme: shapes on an image."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from data.patch_files import read_values
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.polygons.embedded import read_embedded
from wsss_jax.polygons.outlines import Outline
from wsss_jax.polygons.shapes import (
    Drawing,
    NamedImage,
    Shape,
    make_circle,
    make_ring,
    read_points,
    trace_bitmap,
)

IGNORE = "__ignore__"  # labelme's label of what belongs to no class
BACKGROUND = "_background_"  # and of what nobody drew
VERSION = "5.5.0"  # of labelme, whose files are written
_WITHOUT_AREA = ("point", "line", "linestrip", "points")
_WITH_AREA = ("polygon", "rectangle", "oriented_rectangle", "rotation", "circle", "mask")
_INSIDE = 1.0  # pixels by which the corners of a bitmap may differ from its size: they are rounded


def read_labelme(fields: Mapping[str, Any], path: Path) -> Drawing:
    """Reads the shapes of a file of labelme.

    Args:
      fields: its content.
      path: of the file, for messages.

    Raises:
      InputError: names the file and the shape that is not as labelme writes it.
    """
    if not isinstance(fields["shapes"], list):
        raise InputError(f"{path}: shapes is not a list; save the file again in labelme")
    image = NamedImage(
        _read_size(fields, path),
        _read_text(fields, "imagePath", path).replace("\\", "/"),  # as of Windows
        _read_text(fields, "imageData", path),
    )
    drawing = Drawing([], Counter(), image)
    for number, each in enumerate(fields["shapes"], start=1):
        if not isinstance(each, Mapping) or not isinstance(each.get("label"), str):
            raise InputError(f"{path}: shape {number} has no label; give it one or remove it")
        label = each["label"].strip()
        where, kind = f"shape {number} ({label!r})", each.get("shape_type") or "polygon"
        if kind in _WITHOUT_AREA:
            drawing.left_out[kind] += 1
            continue
        if kind not in _WITH_AREA:
            known = ", ".join((*_WITH_AREA, *_WITHOUT_AREA))
            raise InputError(
                f"{path}: {where} is of the unknown type {kind!r} (known: {known}); draw it as a "
                "polygon or remove it"
            )
        points = read_points(each.get("points"), path, where)
        polygons = _make_polygons(kind, points, each, path, where)
        if any(polygon.area for polygon in polygons):
            drawing.shapes.append(Shape(where, label, polygons))
        else:
            drawing.left_out[f"{kind} without area"] += 1
    return drawing


def _read_text(fields: Mapping[str, Any], name: str, path: Path) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise InputError(f"{path}: {name} is not a text; save the file again in labelme")
    return value


def _read_size(fields: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    sides = [fields.get(name) for name in ("imageWidth", "imageHeight")]
    if sides == [None, None]:
        return None
    width, height = sides
    if not (type(width) is int and type(height) is int and min(width, height) > 0):
        raise InputError(
            f"{path}: imageWidth and imageHeight are {width!r} and {height!r}, not numbers of "
            "pixels; save the file again in labelme"
        )
    return width, height


def _make_polygons(
    kind: str,
    points: list[tuple[float, float]],
    fields: Mapping[str, Any],
    path: Path,
    where: str,
) -> list[shapely.Polygon]:
    """Makes the polygons of a shape with an area, of the type `kind`."""
    if kind in ("circle", "mask") or (kind == "rectangle" and len(points) != 4):
        if len(points) != 2:
            raise InputError(
                f"{path}: {where} is a {kind} of {len(points)} points, not 2; draw it again"
            )
        first, second = points
        if kind == "rectangle":
            return [shapely.box(*np.minimum(first, second), *np.maximum(first, second))]
        if kind == "circle":
            return [make_circle(first, second)]
        return _trace_mask(points, fields, path, where)
    return [shapely.Polygon(make_ring(points, path, where))]


def _trace_mask(
    points: list[tuple[float, float]], fields: Mapping[str, Any], path: Path, where: str
) -> list[shapely.Polygon]:
    """Traces the bitmap of a shape; its points are the first pixel and the last."""
    text = fields.get("mask")
    if not isinstance(text, str):
        raise InputError(f"{path}: {where} has no bitmap in mask; draw it again")
    bitmap = read_embedded(text, path, f"the mask of {where}", lambda file: read_values(file, None))
    (left, top), (right, bottom) = np.round(points).astype(int).tolist()
    height, width = bitmap.shape
    if max(abs(right - left + 1 - width), abs(bottom - top + 1 - height)) > _INSIDE:
        raise InputError(
            f"{path}: the mask of {where} is {width}x{height} pixels, but its points are "
            f"{right - left + 1}x{bottom - top + 1} apart; draw it again"
        )
    return trace_bitmap(bitmap, (left, top))


def write_labelme(
    path: Path,
    outlines: Sequence[Outline],
    labels: Sequence[str],
    size: tuple[int, int],
    image: str,
) -> None:
    """Writes outlines as polygons of labelme, atomically; the same ones give the same bytes.

    Args:
      path: of the file.
      outlines: the uppermost last, as labelme shows and draws them.
      labels: by mask value.
      size: width and height of the image in pixels.
      image: path of the image, from the folder of the file.
    """
    shapes = [
        {
            "label": labels[outline.value],
            "points": outline.ring[:-1].astype(float).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for outline in outlines
    ]
    width, height = size
    fields: dict[str, Any] = {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    with atomic_path(path) as temporary:
        text = json.dumps(fields, ensure_ascii=False, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
