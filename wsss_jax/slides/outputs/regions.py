"""The regions of a label map, found in bands of rows, so that a map of any size fits in memory.

A region is a 4-connected area of one class: pixels that only touch at a corner are in two regions,
and a hole belongs to the region around it. A region that continues in the next band is kept and
joined with its continuation, so that regions do not depend on the bands. How much is kept is
limited: above the limit, the largest regions are cut along a row of pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import shapely
from rasterio import features

BAND = 1024  # most rows of a band
PIXELS = 2**24  # most pixels of a band
EDGES = 2**19  # most sides of pixels between two classes in a band of more than one row
CORNERS = 2**18  # most corners kept of all regions that continue in the next band

# Reads a map: (y0, y1, step) -> (ceil((y1 - y0) / step), ceil(width / step)) uint8 of 0..C, the
# rows y0, y0 + step, ... below y1, and of each the columns 0, step, ...
ReadRows = Callable[[int, int, int], np.ndarray]

_GROUP = 2**14  # corners of GDAL's polygons, lists of tuples, that become arrays together

_NONE, _CUT = -1, -2  # instead of the number of an open region: excluded, or cut there


class Region(NamedTuple):
    """A 4-connected area of one class, or a part of one that was cut.

    Attributes:
      value: the class.
      rings: the outline, then the holes: each (N, 2) int64 x, y of corners, starting at the corner
        of its upper left pixel, which is repeated at the end.
      pixels: number of pixels of the class, without those of holes that were filled.
    """

    value: int
    rings: list[np.ndarray]
    pixels: int


class _Piece(NamedTuple):
    """A region of one band by itself.

    Attributes:
      value: the class.
      outline, holes: see `Region`.
      pixels: number of its pixels.
      hole_pixels: number of pixels in each hole.
      bottom: the largest y of the outline.
    """

    value: int
    outline: np.ndarray
    holes: list[np.ndarray]
    pixels: int
    hole_pixels: list[int]
    bottom: int


@dataclass
class _OpenRegion:
    """The part in the bands so far of a region that may continue in the next one."""

    value: int
    outlines: list[np.ndarray]  # of its pieces, one or more per band
    holes: list[np.ndarray]  # of its pieces; `_close_region` adds those between pieces
    pixels: int  # so far
    cut: bool = False  # whether more of the region lies above, as a region of its own

    def count_corners(self) -> int:
        return sum(map(len, [*self.outlines, *self.holes]))


def find_regions(
    read_rows: ReadRows, width: int, height: int, excluded: int, least: float = 0.0
) -> Iterator[Region]:
    """Yields the regions of all classes, each as soon as it is complete.

    Memory holds one band, and the regions that reach its lower border. If these have more than
    `CORNERS` corners together, the largest are cut there; what continues below is a region of its
    own, which is kept however small it is. The order depends on the bands; the regions do not,
    unless one is cut.

    Args:
      read_rows: reads the map.
      width, height: of the map in pixels.
      excluded: the value without regions.
      least: smallest region, in pixels; smaller regions are left out, smaller holes filled.
    """
    open_regions: dict[int, _OpenRegion] = {}  # by number
    count = 0
    row_above = np.full(width, excluded, np.uint8)
    numbers_above = np.full(width, _NONE)  # of the open region that each pixel belongs to
    for y0, labels in _split_into_bands(read_rows, width, height):
        y1 = y0 + len(labels)
        numbers_top, numbers_bottom = np.full((2, width), _NONE)
        for piece in _trace_pieces(labels, y0, excluded):
            # Regions in a small hole are smaller still and left out: filling it covers none.
            sized = zip(piece.holes, piece.hole_pixels, strict=True)
            holes = [hole for hole, pixels in sized if pixels >= least]
            top = y0 > 0 and piece.outline[0, 1] == y0
            bottom = y1 < height and piece.bottom == y1
            if not top and not bottom:
                if piece.pixels >= least:
                    yield Region(piece.value, [piece.outline, *holes], piece.pixels)
                continue
            open_regions[count] = _OpenRegion(piece.value, [piece.outline], holes, piece.pixels)
            if top:
                _mark_border(numbers_top, piece.outline, y0, count)
            if bottom:
                _mark_border(numbers_bottom, piece.outline, y1, count)
            count += 1
        joined = (row_above == labels[0]) & (row_above != excluded)
        for number in np.unique(numbers_top[joined & (numbers_above == _CUT)]).tolist():
            open_regions[number].cut = True
        joined &= numbers_above != _CUT
        pairs = np.stack([numbers_above[joined], numbers_top[joined]], axis=1)
        find_number = _join(open_regions, np.unique(pairs, axis=0).tolist())
        numbers, where = np.unique(numbers_bottom, return_inverse=True)
        continued = [find_number(number) for number in numbers.tolist()]
        cut = _choose_cuts(open_regions, set(continued) - {_NONE}, least)
        continued = [_CUT if number in cut else number for number in continued]
        for number in sorted(open_regions.keys() - set(continued)):
            region = _close_region(open_regions[number], least)
            if region.pixels >= least or open_regions[number].cut or number in cut:
                yield region
            del open_regions[number]
        row_above, numbers_above = labels[-1].copy(), np.array(continued)[where]


def _split_into_bands(
    read_rows: ReadRows, width: int, height: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, labels) from top to bottom, in bands that are not too much at once."""
    rows = min(BAND, max(1, PIXELS // width))
    for y0 in range(0, height, rows):
        block = read_rows(y0, min(y0 + rows, height), 1)
        if block.min() == block.max():  # such as glass
            yield y0, block
            continue
        edges = np.count_nonzero(block[:, 1:] != block[:, :-1], axis=1)
        edges[1:] += np.count_nonzero(block[1:] != block[:-1], axis=1)
        band = np.cumsum(edges) // EDGES
        starts = np.flatnonzero(np.diff(band, prepend=-1))
        for start, labels in zip(starts.tolist(), np.split(block, starts[1:]), strict=True):
            yield y0 + start, labels


def _choose_cuts(
    open_regions: dict[int, _OpenRegion], continued: set[int], least: float
) -> set[int]:
    """Chooses which of the regions that continue are cut, so that the others have few corners.

    A region still smaller than `least` is not cut: it might lie in a hole that will be filled.
    """
    corners = {number: open_regions[number].count_corners() for number in continued}
    total, cut = sum(corners.values()), set()
    for number in sorted(continued, key=lambda number: (-corners[number], number)):
        if total <= CORNERS:
            break
        if open_regions[number].pixels >= least:
            cut.add(number)
            total -= corners[number]
    return cut


def _trace_pieces(labels: np.ndarray, y0: int, excluded: int) -> Iterator[_Piece]:
    """Yields the regions of one band by itself.

    GDAL's polygons are valid where a ring touches itself or another one in a point. Its rings start
    at the upper left and have no corner within a straight line, like those of `_normalize_ring`.
    """
    mapped = labels != excluded
    columns = np.flatnonzero(mapped.any(axis=0))
    if not columns.size:
        return
    inside = np.s_[:, columns[0] : columns[-1] + 1]  # glass beside the tissue costs nothing
    origin = np.array((columns[0], y0))
    group: list[tuple[Any, float]] = []
    corners = 0
    for geometry, value in features.shapes(labels[inside], mask=mapped[inside], connectivity=4):
        group.append((geometry["coordinates"], value))
        corners += sum(map(len, geometry["coordinates"]))
        if corners >= _GROUP:
            yield from _convert_pieces(group, origin)
            group, corners = [], 0
    if group:
        yield from _convert_pieces(group, origin)


def _convert_pieces(group: Sequence[tuple[Any, float]], origin: np.ndarray) -> Iterator[_Piece]:
    """Makes arrays of GDAL's polygons: (rings of tuples, value) each."""
    rings = [ring for polygon, _ in group for ring in polygon]
    ends = np.cumsum([len(ring) for ring in rings])
    numbers = np.fromiter(chain.from_iterable(chain.from_iterable(rings)), float, 2 * ends[-1])
    points = numbers.astype(np.int64).reshape(-1, 2) + origin
    starts = np.concatenate([[0], ends[:-1]])
    # As `count_inside`: a ring ends where it starts, so the step to the next one is left out.
    steps = np.diff(points[:, 1], append=points[-1:, 1])
    steps[ends - 1] = 0
    counts = np.add.reduceat(points[:, 0] * steps, starts).tolist()
    bottoms = np.maximum.reduceat(points[:, 1], starts).tolist()
    # Each an array of its own, so that a region that stays does not hold the others.
    arrays = [points[start:end].copy() for start, end in zip(starts.tolist(), ends.tolist())]
    first = 0
    for polygon, value in group:
        last = first + len(polygon)
        hole_pixels = counts[first + 1 : last]
        outline, *holes = arrays[first:last]
        pixels = -counts[first] - sum(hole_pixels)
        yield _Piece(int(value), outline, holes, pixels, hole_pixels, bottoms[first])
        first = last


def _mark_border(numbers: np.ndarray, outline: np.ndarray, y: int, number: int) -> None:
    """Writes a region's number at each of its pixels beside the border y of a band.

    Holes have no edge there: what is open towards the border is not a hole.
    """
    on_border = (outline[:-1, 1] == y) & (outline[1:, 1] == y)
    ends = np.stack([outline[:-1, 0], outline[1:, 0]], axis=1)[on_border]
    for start, stop in np.sort(ends, axis=1).tolist():
        numbers[start:stop] = number


def _join(open_regions: dict[int, _OpenRegion], pairs: list[list[int]]) -> Callable[[int], int]:
    """Joins pairs of open regions; returns a function from a number to that after joining."""
    successors: dict[int, int] = {}

    def find_number(number: int) -> int:
        while number in successors:
            number = successors[number]
        return number

    def count_rings(number: int) -> tuple[int, int]:
        return len(open_regions[number].outlines) + len(open_regions[number].holes), number

    for pair in pairs:
        first, *others = {find_number(number) for number in pair}
        for second in others:
            # The larger one stays, so that its parts are not copied again and again.
            small, large = sorted((first, second), key=count_rings)
            successors[small] = large
            small_region, region = open_regions.pop(small), open_regions[large]
            region.outlines.extend(small_region.outlines)
            region.holes.extend(small_region.holes)
            region.pixels += small_region.pixels
            region.cut |= small_region.cut
    return find_number


def _close_region(parts: _OpenRegion, least: float) -> Region:
    """Makes one region of pieces that share edges on the borders of bands; fills small holes."""
    outline, holes = parts.outlines[0], parts.holes
    if len(parts.outlines) > 1:
        # Without the holes inside the pieces, which would only make the union slower.
        union = shapely.union_all([shapely.Polygon(outline) for outline in parts.outlines])
        outline = _normalize_ring(union.exterior, hole=False)
        between = [_normalize_ring(ring, hole=True) for ring in union.interiors]
        holes = holes + [hole for hole in between if -count_inside(hole) >= least]
    holes = sorted(holes, key=lambda hole: hole[0, ::-1].tolist())
    return Region(parts.value, [outline, *holes], parts.pixels)


def _normalize_ring(ring: shapely.LinearRing, *, hole: bool) -> np.ndarray:
    """Keeps only corners, from the upper left one on; outlines go down first, holes right."""
    ring = shapely.get_coordinates(ring)[:-1].astype(np.int64)
    ring = ring[(np.roll(ring, 1, axis=0) != np.roll(ring, -1, axis=0)).all(axis=1)]
    ring = np.roll(ring, -np.lexsort(ring.T)[0], axis=0)
    ring = np.concatenate([ring, ring[:1]])
    return orient_ring(ring, hole=hole)


def count_inside(ring: np.ndarray) -> int:
    """Counts the pixels inside a ring along their sides, negative for a hole."""
    return -int(ring[:-1, 0] @ np.diff(ring[:, 1]))


def measure_area(ring: np.ndarray) -> float:
    """Measures the area inside a ring with corners anywhere, negative for a hole."""
    return -0.5 * float((ring[:-1, 0] + ring[1:, 0]) @ np.diff(ring[:, 1]))


def orient_ring(ring: np.ndarray, *, hole: bool) -> np.ndarray:
    """Reverses a ring if needed, so that `measure_area` is negative only for holes."""
    return ring if (measure_area(ring) < 0) == hole else ring[::-1]
