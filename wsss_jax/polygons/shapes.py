"""Shapes that a person has drawn, and the masks that they give.

Coordinates are those of viewers: x to the right, y down, (0, 0) the upper left corner of the upper
left pixel. A pixel belongs to a shape that its center lies in.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import shapely
from rasterio import Affine, features

from wsss_jax.errors import InputError

Overlap = Literal["drawn", "smaller", "classes"]

_FARTHEST = 1e7  # pixels: no image is so large, and larger numbers overflow in GDAL


class Shape(NamedTuple):
    """A shape with an area.

    Attributes:
      where: names it in messages, such as "shape 3 ('tumor')".
      label: what the person called it.
      polygons: its parts. Rings may cross themselves: what they surround twice is outside, as
        labelme shows it.
    """

    where: str
    label: str
    polygons: list[shapely.Polygon]

    def measure_area(self) -> float:
        """Measures its area in square pixels."""
        return sum(polygon.area for polygon in self.polygons)


class NamedImage(NamedTuple):
    """What a file of shapes says of its image.

    Attributes:
      size: width and height in pixels, None if it does not say.
      path: from the folder of the file, "" if it does not say.
      data: the image itself, a picture in base64, "" if it is not in the file.
    """

    size: tuple[int, int] | None
    path: str
    data: str


class Drawing(NamedTuple):
    """The content of a file of shapes.

    Attributes:
      shapes: those with an area, as they were drawn.
      left_out: how many others there are, by kind, such as {"line": 2}.
      image: what a file of labelme says of its image; None for GeoJSON.
      slide_size: width and height in pixels of the slide, if a file of GeoJSON says them, as
        `docs/qupath/export_annotations.groovy` does.
    """

    shapes: list[Shape]
    left_out: Counter[str]
    image: NamedImage | None = None
    slide_size: tuple[int, int] | None = None


class Window(NamedTuple):
    """The pixels of a mask, and where they lie among the coordinates of the shapes.

    Attributes:
      width, height: of the mask, pixels.
      scale: coordinates per pixel, across and down.
      corner: (x, y), the coordinates of the upper left corner.
    """

    width: int
    height: int
    scale: tuple[float, float] = (1.0, 1.0)
    corner: tuple[float, float] = (0.0, 0.0)

    @property
    def area(self) -> shapely.Polygon:
        """What it covers."""
        x, y = self.corner
        return shapely.box(x, y, x + self.width * self.scale[0], y + self.height * self.scale[1])


def read_points(values: Any, path: Path, where: str) -> list[tuple[float, float]]:
    """Reads points of a JSON file: [[x, y], ...]; further numbers of a point, as a z, are dropped.

    Raises:
      InputError: names the file and the shape, if they are no such points.
    """
    if not isinstance(values, list):
        raise InputError(f"{path}: {where} has no list of points; draw it again")
    points = []
    for value in values:
        if not isinstance(value, list) or len(value) < 2 or not all(map(_is_number, value[:2])):
            text = repr(value)
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            raise InputError(f"{path}: {where} has {shown} as a point, not [x, y]; draw it again")
        points.append((float(value[0]), float(value[1])))
    return points


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -_FARTHEST <= value <= _FARTHEST  # also refuses NaN


def make_ring(points: Sequence[tuple[float, float]], path: Path, where: str) -> list:
    """Closes a ring.

    Raises:
      InputError: it has fewer than three corners.
    """
    if len(points) > 1 and points[0] == points[-1]:
        points = points[:-1]
    if len(points) < 3:
        raise InputError(
            f"{path}: {where} has a ring of {len(points)} corners, which has no area; draw it "
            "again or remove it"
        )
    return [*points, points[0]]


def make_circle(center: tuple[float, float], edge: tuple[float, float]) -> shapely.Polygon:
    """Makes the polygon of a circle, at most .1 pixels beside it up to a radius of 1,300 pixels."""
    return shapely.Point(center).buffer(math.dist(center, edge), quad_segs=64)


def trace_bitmap(bitmap: np.ndarray, corner: tuple[int, int]) -> list[shapely.Polygon]:
    """Traces the pixels of a bitmap that are not 0, exactly.

    Args:
      bitmap: (H, W) uint8.
      corner: coordinates of its upper left corner.
    """
    drawn = bitmap != 0
    traced = features.shapes(
        drawn.astype(np.uint8), mask=drawn, connectivity=4, transform=Affine.translation(*corner)
    )
    return [shapely.geometry.shape(geometry) for geometry, _ in traced]


def sort_shapes(
    drawn: Sequence[tuple[Shape, int]], overlap: Overlap, order: Sequence[int]
) -> list[tuple[Shape, int]]:
    """Sorts shapes from the lowest to the uppermost.

    Args:
      drawn: shapes and their mask values, as they were drawn.
      overlap: what lies on top: what was "drawn" later, what is "smaller", or "classes" by `order`.
      order: mask values from the lowest to the uppermost; values that are not in it lie on top.
    """
    if overlap == "smaller":
        return sorted(drawn, key=lambda each: -each[0].measure_area())
    if overlap == "classes":
        ranks = {value: rank for rank, value in enumerate(order)}
        return sorted(drawn, key=lambda each: ranks.get(each[1], len(ranks)))
    return list(drawn)


def paint(drawn: Sequence[tuple[Shape, int]], window: Window, fill: int | np.ndarray) -> np.ndarray:
    """Paints shapes, each over those before it.

    Args:
      drawn: shapes and their mask values, the uppermost last.
      window: what the mask covers.
      fill: the value of pixels without shape, or (height, width) uint8 of them.

    Returns:
      (height, width) uint8.
    """
    mask = np.full((window.height, window.width), fill, np.uint8)
    # Part by part: GDAL takes what two parts of a multipolygon have in common for outside.
    parts = [(polygon, value) for shape, value in drawn for polygon in shape.polygons]
    if parts:
        (across, down), (x, y) = window.scale, window.corner
        features.rasterize(parts, out=mask, transform=Affine(across, 0, x, 0, down, y))
    return mask


def cut_window(shape: Shape, whole: Window) -> tuple[int, int, Window]:
    """Cuts out of a window what surrounds a shape, to the nearest pixel.

    Returns:
      column and row of its first pixel in the whole window, and the part.
    """
    bounds = shapely.MultiPoint(
        [corner for p in shape.polygons for corner in (p.bounds[:2], p.bounds[2:])]
    ).bounds
    starts, sizes = [], []
    for axis, length in enumerate((whole.width, whole.height)):
        first, last = (
            round((bounds[axis + end] - whole.corner[axis]) / whole.scale[axis]) for end in (0, 2)
        )
        start = min(max(first, 0), length - 1)
        starts.append(start)
        sizes.append(min(max(last, start + 1), length) - start)
    corner = (
        whole.corner[0] + starts[0] * whole.scale[0],
        whole.corner[1] + starts[1] * whole.scale[1],
    )
    return starts[0], starts[1], Window(sizes[0], sizes[1], whole.scale, corner)


def check_overlap(shapes: Sequence[Shape], window: Window, path: Path) -> None:
    """Refuses shapes beside the image: they were drawn on another one.

    Raises:
      InputError: names the first that is outside of the image.
    """
    area = window.area
    for shape in shapes:
        if not any(area.intersects(shapely.box(*polygon.bounds)) for polygon in shape.polygons):
            wide, tall = (round(size) for size in area.bounds[2:])
            raise InputError(
                f"{path}: {shape.where} lies outside of the image, which ends at x {wide}, y "
                f"{tall}; was it drawn on this one? Remove the shape or name the right image"
            )
