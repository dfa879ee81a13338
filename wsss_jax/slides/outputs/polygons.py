"""A label map as polygons for QuPath: GeoJSON, made band by band and written as a stream.

A region is a 4-connected area of one class: pixels that only touch at a corner are two regions, and
a hole belongs to the region around it. A region that goes on in the next band is kept and joined
with its continuation, so that regions do not depend on the bands. What is kept is bounded: where
it is too much, the largest regions are cut off along a row of pixels.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from rasterio import features

from wsss_jax.files import atomic_path

BAND = 1024  # rows that are turned into polygons at a time, or fewer:
PIXELS = 2**24  # most of a band
EDGES = 2**19  # most sides of pixels between two classes in a band of more than one row
CORNERS = 2**18  # most that are kept of all regions that go on in the next band
DECIMALS = 2  # of coordinates, in full-resolution pixels; QuPath keeps as many
CHANGE = 0.02  # most that simplification may change the area of a region, as a share of it
AREA = "Area um^2 (label map)"  # QuPath has an "Area µm^2" of its own, of the outline

ReadRows = Callable[[int, int, int], np.ndarray]
Color = tuple[int, int, int]

_NONE, _CUT = -1, -2  # instead of a begun region's number: excluded, or cut off there


class Region(NamedTuple):
    """A 4-connected area of one class, or a part of one that was cut.

    Attributes:
      value: the class.
      rings: the outline, then the holes: each (N, 2) int64 x, y of corners, the first one repeated
        at the end, beginning at its upper left pixel.
      pixels: how many pixels it has; those of holes that were filled are not among them.
    """

    value: int
    rings: list[np.ndarray]
    pixels: int


@dataclass
class _Open:
    """What the bands so far have of a region that may go on in the next one.

    Attributes:
      value: the class.
      outlines: of its pieces, one or more a band.
      holes: of its pieces; `_closed` adds those between pieces.
      pixels: how many it has so far.
      cut: whether more of the region lies above, in a part of its own.
    """

    value: int
    outlines: list[np.ndarray]
    holes: list[np.ndarray]
    pixels: int
    cut: bool = False

    def corners(self) -> int:
        """How many there are on all rings."""
        return sum(map(len, self.outlines)) + sum(map(len, self.holes))


def write_geojson(
    path: Path | str,
    read_rows: ReadRows,
    width: int,
    height: int,
    *,
    mpp: float,
    scale: float | tuple[float, float],
    offset: tuple[float, float],
    slide_size: tuple[int, int],
    names: Sequence[str],
    palette: Sequence[Color],
    slide_id: str,
    min_area: float = 0.0,
    simplify: float = 0.0,
) -> np.ndarray:
    """Writes the regions as QuPath annotations, a line each, atomically.

    With `min_area` and `simplify` 0 the polygons are exact: filled in again they give the label
    map. Simplified ones are valid each by itself, but neighbors may overlap or gape by the
    tolerance; a region whose area would change by over `CHANGE` is simplified less, or not at all.
    The measured area is always that of the region's own pixels. A region of more than `CORNERS`
    corners becomes several annotations, see `regions`. Rings turn as RFC 7946 wants them: with x
    and y as numbers, outlines counterclockwise, holes clockwise.

    Args:
      path: ends in `.geojson`.
      read_rows: (y0, y1, step) -> (ceil((y1 - y0) / step), ceil(width / step)) uint8 of 0..C, the
        rows y0, y0 + step, ... below y1; C, excluded, gets no polygons.
      width: of the map in working pixels.
      height: likewise.
      mpp: micrometres per working pixel.
      scale: full-resolution pixels per working pixel, or (along x, along y).
      offset: (x, y) in full-resolution pixels of the viewer's origin: OpenSlide's bounds, or 0, 0.
      slide_size: (width, height) in full-resolution pixels; the map's last column and row may
        reach beyond them, polygons do not.
      names: C class names.
      palette: RGB (0..255) of each class; a further one is ignored.
      slide_id: text that tells slides apart; the identifiers of the annotations follow from it.
      min_area: in square micrometres: smaller regions are left out, smaller holes filled.
      simplify: farthest that an outline may move, in working pixels.

    Returns:
      (C,) float64: the area that the polygons of each class hold, in working pixels.
    """
    held = np.zeros(len(names))
    pixel = float(np.prod(np.broadcast_to(scale, 2)))
    move = partial(_moved, scale=scale, offset=offset, limits=slide_size)
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"wsss_jax/{slide_id}")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for region in regions(read_rows, width, height, len(names), min_area / mpp**2):
            x, y = region.rings[0][0].tolist()  # upper left of a pixel that no other region has
            head = {
                "type": "Feature",
                "id": str(uuid.uuid5(namespace, f"{x},{y}")),
                "properties": {
                    "objectType": "annotation",
                    "classification": {
                        "name": names[region.value],
                        "color": list(palette[region.value]),
                    },
                    "isLocked": True,
                    "measurements": {AREA: round(region.pixels * mpp**2, 4)},
                },
            }
            parts = _placed(region.rings, move, simplify)
            if not parts:
                continue  # thinner than the coordinates tell apart
            held[region.value] += sum(_any_area(r) for rings in parts for r in rings) / pixel
            kind = "Polygon" if len(parts) == 1 else "MultiPolygon"
            file.write(separator + _json(head)[:-1])
            file.write(f',"geometry":{{"type":"{kind}","coordinates":')
            # Ring by ring: the largest region has millions of corners.
            file.write("[" * (len(parts) > 1))
            for number, rings in enumerate(parts):
                separator = "," * (number > 0) + "["
                for ring in rings:
                    file.write(separator + _json(ring[::-1].tolist()))
                    separator = ","
                file.write("]")
            file.write("]" * (len(parts) > 1) + "}}")
            separator = ",\n"
        file.write("\n]}\n")
    return held


def regions(
    read_rows: ReadRows, width: int, height: int, excluded: int, least: float = 0.0
) -> Iterator[Region]:
    """Yields the regions of all classes but `excluded`, each as soon as it is complete.

    Memory holds a band, and what there is of the regions that reach its lower border. When these
    have more than `CORNERS` corners together, the largest ones are cut off there, and their
    continuations are regions of their own, which are kept however small. The order follows from the
    bands; the regions do not, unless one is cut.

    Args:
      read_rows: as for `write_geojson`.
      width: of the map in pixels.
      height: likewise.
      excluded: the value without regions.
      least: pixels; smaller regions are left out, smaller holes filled.
    """
    begun: dict[int, _Open] = {}  # by number
    count = 0
    row_above = np.full(width, excluded, np.uint8)
    numbers_above = np.full(width, _NONE)  # what begun region each pixel of it is of
    for y0, labels in _bands(read_rows, width, height):
        y1 = y0 + len(labels)
        numbers_top, numbers_bottom = np.full((2, width), _NONE)
        for value, outline, holes in _pieces(labels, y0, excluded):
            pixels = _area(outline) + sum(map(_area, holes))
            # What lies in a hole is smaller than the hole, hence left out: nothing is covered.
            holes = [hole for hole in holes if -_area(hole) >= least]
            top = y0 > 0 and outline[0, 1] == y0
            bottom = y1 < height and outline[:, 1].max() == y1
            if not top and not bottom:
                if pixels >= least:
                    yield Region(value, [outline, *holes], pixels)
                continue
            begun[count] = _Open(value, [outline], holes, pixels)
            if top:
                _mark(numbers_top, outline, y0, count)
            if bottom:
                _mark(numbers_bottom, outline, y1, count)
            count += 1
        joined = (row_above == labels[0]) & (row_above != excluded)
        for number in np.unique(numbers_top[joined & (numbers_above == _CUT)]).tolist():
            begun[number].cut = True
        joined &= numbers_above != _CUT
        pairs = np.stack([numbers_above[joined], numbers_top[joined]], axis=1)
        find = _join(begun, np.unique(pairs, axis=0).tolist())
        numbers, where = np.unique(numbers_bottom, return_inverse=True)
        going_on = [find(number) for number in numbers.tolist()]
        cut = _too_many(begun, set(going_on) - {_NONE}, least)
        going_on = [_CUT if number in cut else number for number in going_on]
        for number in sorted(begun.keys() - set(going_on)):
            region = _closed(begun[number], least)
            if region.pixels >= least or begun[number].cut or number in cut:
                yield region
            del begun[number]
        row_above, numbers_above = labels[-1].copy(), np.array(going_on)[where]


def _bands(read_rows: ReadRows, width: int, height: int) -> Iterator[tuple[int, np.ndarray]]:
    """The map from top to bottom in rows that are not too much at once: the first one, labels."""
    rows = min(BAND, max(1, PIXELS // width))
    for y0 in range(0, height, rows):
        block = read_rows(y0, min(y0 + rows, height), 1)
        edges = np.count_nonzero(block[:, 1:] != block[:, :-1], axis=1)
        edges[1:] += np.count_nonzero(block[1:] != block[:-1], axis=1)
        band = np.cumsum(edges) // EDGES
        starts = np.flatnonzero(np.diff(band, prepend=-1))
        for start, labels in zip(starts.tolist(), np.split(block, starts[1:]), strict=True):
            yield y0 + start, labels


def _too_many(begun: dict[int, _Open], going_on: set[int], least: float) -> set[int]:
    """Which of the regions that go on are cut, so that the others have few enough corners.

    One that is still smaller than `least` is not: it might lie in a hole that will be filled.
    """
    corners = {number: begun[number].corners() for number in going_on}
    kept, cut = sum(corners.values()), set()
    for number in sorted(going_on, key=lambda number: (-corners[number], number)):
        if kept <= CORNERS:
            break
        if begun[number].pixels >= least:
            cut.add(number)
            kept -= corners[number]
    return cut


def _pieces(
    labels: np.ndarray, y0: int, excluded: int
) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
    """The regions of one band by themselves: class, outline, holes.

    GDAL's polygons are valid where a ring meets itself or another one in a point, and their rings
    begin at the upper left and have no corner in a straight line: `_tidied` makes the same.
    """
    mapped = labels != excluded
    columns = np.flatnonzero(mapped.any(axis=0))
    if not columns.size:
        return
    inside = np.s_[:, columns[0] : columns[-1] + 1]  # glass beside the tissue costs nothing
    origin = np.array((columns[0], y0))
    for geometry, value in features.shapes(labels[inside], mask=mapped[inside], connectivity=4):
        rings = [np.array(ring, np.int64) + origin for ring in geometry["coordinates"]]
        yield int(value), rings[0], rings[1:]


def _mark(numbers: np.ndarray, outline: np.ndarray, y: int, number: int) -> None:
    """Enters a region's number at each of its pixels beside the border y of a band.

    Holes have no edge there: what is open towards the border is no hole.
    """
    on_border = (outline[:-1, 1] == y) & (outline[1:, 1] == y)
    ends = np.stack([outline[:-1, 0], outline[1:, 0]], axis=1)[on_border]
    for start, stop in np.sort(ends, axis=1).tolist():
        numbers[start:stop] = number


def _join(begun: dict[int, _Open], pairs: list[list[int]]) -> Callable[[int], int]:
    """Joins pairs of begun regions; returns what finds the number a region goes on under."""
    successors: dict[int, int] = {}

    def find(number: int) -> int:
        while number in successors:
            number = successors[number]
        return number

    for pair in pairs:
        first, *others = {find(number) for number in pair}
        for second in others:
            # The larger one stays, so that its parts are not copied again and again.
            stays, goes = sorted(
                (first, second),
                key=lambda number: (len(begun[number].outlines) + len(begun[number].holes), number),
                reverse=True,
            )
            successors[goes] = stays
            begun[stays].outlines.extend(begun[goes].outlines)
            begun[stays].holes.extend(begun[goes].holes)
            begun[stays].pixels += begun[goes].pixels
            begun[stays].cut |= begun[goes].cut
            del begun[goes]
    return find


def _closed(parts: _Open, least: float) -> Region:
    """The region of pieces that share edges on borders of bands; holes below `least` are filled."""
    outline, holes = parts.outlines[0], parts.holes
    if len(parts.outlines) > 1:
        # Without holes, which are inside a piece, so that the work is only that of the outlines.
        union = shapely.union_all([shapely.Polygon(outline) for outline in parts.outlines])
        outline = _tidied(union.exterior, hole=False)
        between = [_tidied(ring, hole=True) for ring in union.interiors]
        holes = holes + [hole for hole in between if -_area(hole) >= least]
    holes = sorted(holes, key=lambda hole: hole[0, ::-1].tolist())
    return Region(parts.value, [outline, *holes], parts.pixels)


def _tidied(ring: shapely.LinearRing, *, hole: bool) -> np.ndarray:
    """Corners only, from the upper left one on, outlines down first and holes to the right."""
    ring = shapely.get_coordinates(ring)[:-1].astype(np.int64)
    ring = ring[(np.roll(ring, 1, axis=0) != np.roll(ring, -1, axis=0)).all(axis=1)]
    ring = np.roll(ring, -np.lexsort(ring.T)[0], axis=0)
    ring = np.concatenate([ring, ring[:1]])
    return _turned(ring, hole=hole)


def _area(ring: np.ndarray) -> int:
    """Pixels inside a ring along their sides, negative if it is a hole."""
    return -int(ring[:-1, 0] @ np.diff(ring[:, 1]))


def _any_area(ring: np.ndarray) -> float:
    """The same of a ring with corners anywhere."""
    return -0.5 * float((ring[:-1, 0] + ring[1:, 0]) @ np.diff(ring[:, 1]))


def _placed(
    rings: list[np.ndarray], move: Callable[[np.ndarray], np.ndarray], simplify: float
) -> list[list[np.ndarray]]:
    """A region in full-resolution pixels: one polygon as its rings, or those that it falls into.

    Simplified as far as that keeps it valid and its area, and rounded.
    """
    if simplify:
        polygon = shapely.Polygon(rings[0], rings[1:])
        # Most regions that lose too much are small: they cost little as they are.
        for tolerance in (simplify, simplify / 2):
            simple = polygon.simplify(tolerance)
            if abs(simple.area - polygon.area) > CHANGE * polygon.area:
                continue
            corners = [shapely.get_coordinates(r) for r in (simple.exterior, *simple.interiors)]
            moved = [move(ring) for ring in corners]
            if _is_valid(moved):
                return [moved]
    exact = [move(ring) for ring in rings]
    return [exact] if _is_valid(exact) else _repaired(exact)


def _is_valid(rings: list[np.ndarray]) -> bool:
    polygon = shapely.Polygon(rings[0], rings[1:])
    return bool(polygon.is_valid and polygon.area > 0)


def _repaired(rings: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The valid polygons that a region becomes whose rings rounding has brought to cross or touch.

    Coordinates stay multiples of what `DECIMALS` tells apart; what has no area there is dropped.
    """
    valid = shapely.make_valid(shapely.Polygon(rings[0], rings[1:]))
    snapped = shapely.set_precision(valid, 10.0**-DECIMALS)
    found = []
    # Lines are among the parts, and polygons in parts of parts.
    for part in shapely.get_parts(shapely.get_parts(snapped)):
        if part.geom_type == "Polygon" and part.area > 0:
            outline, *holes = (shapely.get_coordinates(r) for r in (part.exterior, *part.interiors))
            oriented = [_turned(outline, hole=False), *(_turned(hole, hole=True) for hole in holes)]
            found.append([_rounded(ring) for ring in oriented])
    return found


def _turned(ring: np.ndarray, *, hole: bool) -> np.ndarray:
    return ring if (_any_area(ring) < 0) == hole else ring[::-1]


def _moved(
    ring: np.ndarray,
    scale: float | tuple[float, float],
    offset: tuple[float, float],
    limits: tuple[int, int],
) -> np.ndarray:
    return _rounded(np.minimum(ring * np.asarray(scale), limits) - np.asarray(offset))


def _rounded(ring: np.ndarray) -> np.ndarray:
    moved = np.round(ring, DECIMALS)
    whole = moved.astype(np.int64)
    return whole if np.array_equal(whole, moved) else moved  # 7 is shorter than 7.0


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
