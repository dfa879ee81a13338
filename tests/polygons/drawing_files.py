"""Files of labelme and QuPath as tests write them."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image


def encode_png(array: np.ndarray) -> str:
    """A picture in base64, as labelme embeds it."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def make_shape(label: str, points: list, kind: str = "polygon", **fields: object) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **fields}


def write_labelme(path: Path, shapes: list, size=(20, 16), image="", **fields: object) -> Path:
    """Writes a file as labelme does; `fields` replace others."""
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": size[1],
        "imageWidth": size[0],
        **fields,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def make_feature(label: str | None, rings: list, kind: str = "Polygon", **fields: object) -> dict:
    """An annotation as QuPath exports it; `rings` are the coordinates."""
    properties = {"objectType": "annotation"}
    if label is not None:
        properties["classification"] = {"name": label, "color": [200, 0, 0]}
    geometry = {"type": kind, "coordinates": rings}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties, **fields}


def make_box(left: float, top: float, right: float, bottom: float) -> list:
    """A closed ring."""
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def write_geojson(path: Path, features: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
