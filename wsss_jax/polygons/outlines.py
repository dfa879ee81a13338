"""The regions of a mask as outlines without holes, each painted over those before it.

labelme's polygons have no holes. A seam from the outline into a hole would come apart as soon as a
corner is moved, and the border between two tissues would be there twice. So the region around a
hole is painted first, whole, and what is in the hole over it: each border is one line to correct.
"""

from typing import NamedTuple

import numpy as np
import shapely

from wsss_jax.errors import InputError
from wsss_jax.polygons.shapes import Shape, Window, paint
from wsss_jax.slides.outputs.geojson import PolygonRule, make_polygons
from wsss_jax.slides.outputs.regions import count_inside, find_regions

_NO_VALUE = 255  # excluded regions are traced, too


class Outline(NamedTuple):
    """The outline of a region.

    Attributes:
      value: the mask value inside.
      ring: (N, 2) x, y of its corners, the first repeated at the end.
    """

    value: int
    ring: np.ndarray


def outline_regions(mask: np.ndarray, excluded: int, rule: PolygonRule) -> list[Outline]:
    """Outlines the regions of a mask.

    With `min_area` and `simplify` 0, painting the outlines one over the other on `excluded` gives
    the mask again.

    Args:
      mask: (H, W) uint8 of 0..C.
      excluded: C; its regions are outlined only where others surround them.
      rule: which regions, the area in pixels, and how exactly.

    Returns:
      outlines, the uppermost last.

    Raises:
      InputError: there are too many classes.
    """
    if excluded >= _NO_VALUE:
        raise InputError(f"{excluded} classes: labelme files are written of at most 254")
    height, width = mask.shape
    regions = [
        (region.value, region.rings[0])
        for region in find_regions(
            lambda y0, y1, step: mask[y0:y1:step, ::step], width, height, _NO_VALUE, rule.min_area
        )
    ]
    whole = [
        (Shape("", "", [shapely.Polygon(ring)]), 1) for value, ring in regions if value != excluded
    ]
    covered = paint(whole, Window(width, height), 0)
    # Two outlines lie one in the other or apart: what is larger is below.
    regions.sort(key=lambda region: -count_inside(region[1]))
    # The first corner is that of a pixel of the region.
    drawn = [each for each in regions if each[0] != excluded or covered[tuple(each[1][0, ::-1])]]
    made = make_polygons([[ring] for _, ring in drawn], np.asarray, rule.simplify)
    return [
        Outline(value, rings[0]) for (value, _), polygons in zip(drawn, made) for rings in polygons
    ]
