"""Counts the classes of a drawn part of a map."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from rasterio import features
from rasterio.transform import Affine

from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.tiled_pyramid import TiledPyramid

_BAND = 512  # rows read at a time
MOST = 2**26  # pixels of a part's frame that are read; of a larger part, a coarser level


class Count(NamedTuple):
    """The pixels of a part.

    Attributes:
      pixels: of each label value, 0..C, scaled to the full map.
      step: 1 = every pixel was counted; 2 = every second one along both axes; and so on.
    """

    pixels: list[int]
    step: int


def count_in_polygon(
    labels: TiledPyramid,
    frame: MapFrame,
    excluded: int,
    corners: Sequence[tuple[float, float]],
) -> Count:
    """Counts the pixels of the map whose centers lie in a polygon.

    Args:
      labels: the map.
      frame: where it lies on the slide.
      excluded: the label value of what belongs to no class.
      corners: x, y of at least three corners, in level-0 pixels of the slide.
    """
    points = np.asarray(corners, np.float64) / frame.scale
    width, height = labels.sizes[0]
    left, top = (max(0, math.floor(value)) for value in points.min(axis=0))
    right = min(width, math.ceil(points[:, 0].max()))
    bottom = min(height, math.ceil(points[:, 1].max()))
    if left >= right or top >= bottom:
        return Count([0] * (excluded + 1), 1)
    depth = 0
    while (right - left) * (bottom - top) > MOST * 4**depth and depth + 1 < len(labels.sizes):
        depth += 1
    step = 2**depth
    # Pixel i of a level is pixel i * step of the map; its center is there.
    polygons = _find_polygons((points - 0.5) / step + 0.5)
    width, height = labels.sizes[depth]
    left, top = left // step, top // step
    right, bottom = min(width, -(-right // step)), min(height, -(-bottom // step))
    counts = np.zeros(excluded + 1, np.int64)
    for y in range(top, bottom, _BAND) if polygons else ():
        rows = min(_BAND, bottom - y)
        values = labels.read(depth, 0, left, y, right - left, rows)
        inside = features.rasterize(
            polygons,
            out_shape=values.shape,
            transform=Affine.translation(left, y),
            dtype=np.uint8,
        )
        counts += np.bincount(values[inside == 1], minlength=excluded + 1)[: excluded + 1]
    return Count((counts * step**2).tolist(), step)


def _find_polygons(corners: np.ndarray) -> list[shapely.Polygon]:
    """Finds the areas inside of a line that may cross itself."""
    valid = shapely.make_valid(shapely.Polygon(corners))
    parts = shapely.get_parts(shapely.get_parts(valid))
    return [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
