"""The regions of a label map, or squares, as QuPath annotations: GeoJSON, written as a stream."""

import gzip
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import shapely

from wsss_jax.files import atomic_path
from wsss_jax.report.legend import Color, Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.regions import (
    ReadRows,
    Region,
    find_regions,
    measure_area,
    orient_ring,
)
from wsss_jax.slides.outputs.simplification import simplify_rings

DECIMALS = 2  # of coordinates, in level-0 pixels; QuPath keeps as many
CHANGE = 0.02  # most that simplification may change the area of a region, as a share of it
_PIECE = 2**16  # bytes compressed at once
_GROUP = 2**16  # corners from which regions become polygons together
_LARGE = 2**12  # corners from which `simplify_rings` is faster than GEOS
AREA = "Area um^2 (label map)"  # QuPath has an "Area µm^2" of its own, of the outline


class PolygonRule(NamedTuple):
    """Which regions become polygons, and how exactly. The defaults keep every pixel.

    Attributes:
      min_area: smallest region, in square micrometers: smaller regions are left out, smaller holes
        filled.
      simplify: farthest that an outline may move, in pixels of the map.
    """

    min_area: float = 0.0
    simplify: float = 0.0


def write_geojson(
    path: Path | str,
    read_rows: ReadRows,
    frame: MapFrame,
    legend: Legend,
    slide_id: str,
    rule: PolygonRule,
    *,
    editable: bool = False,
) -> np.ndarray:
    """Writes the regions as QuPath annotations, a line each, atomically.

    With `min_area` and `simplify` 0 the polygons are exact: filled in again they give the label
    map. Simplified ones are valid each by itself, but neighbors may overlap or leave a gap as wide
    as the tolerance; a region whose area would change by more than `CHANGE` is simplified less, or
    not at all. The measured area is always that of the region's own pixels. A region of more than
    `regions.CORNERS` corners becomes several annotations. Rings have the direction of RFC 7946:
    with x and y as numbers, outlines counterclockwise, holes clockwise.

    Args:
      path: ends in `.geojson`, or in `.geojson.gz` for a compressed file.
      read_rows: reads the map of label values 0..C; C, excluded, gets no polygons.
      frame: of the map. Its last column and row may reach beyond the slide, polygons do not.
      legend: of the classes.
      slide_id: text that tells slides apart; the identifiers of the annotations follow from it.
      rule: which regions, and how exactly.
      editable: leaves the annotations unlocked, and without measured areas, which corrections would
        make wrong.

    Returns:
      (C,) float64: the area that the polygons of each class cover, in pixels of the map.
    """
    covered = np.zeros(len(legend.names))
    pixel = float(np.prod(frame.scale))
    with atomic_path(path) as temporary, _open_text(temporary) as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for region, polygons in trace_polygons(read_rows, frame, legend.excluded, rule):
            covered[region.value] += (
                sum(measure_area(ring) for rings in polygons for ring in rings) / pixel
            )
            head = _describe_region(region, legend, None if editable else frame.mpp, slide_id)
            file.write(separator + _to_json(head)[:-1])
            kind = "Polygon" if len(polygons) == 1 else "MultiPolygon"
            file.write(f',"geometry":{{"type":"{kind}","coordinates":')
            # Ring by ring: the largest region has millions of corners.
            file.write("[" * (len(polygons) > 1))
            for number, rings in enumerate(polygons):
                separator = "," * (number > 0) + "["
                for ring in rings:
                    # As JSON without spaces, in half the time of the module for it.
                    file.write(separator + repr(ring[::-1].tolist()).replace(" ", ""))
                    separator = ","
                file.write("]")
            file.write("]" * (len(polygons) > 1) + "}}")
            separator = ",\n"
        file.write("\n]}\n")
    return covered


def trace_polygons(
    read_rows: ReadRows, frame: MapFrame, excluded: int, rule: PolygonRule
) -> Iterator[tuple[Region, list[list[np.ndarray]]]]:
    """Yields the regions of a map with their polygons, each a list of rings.

    Rings are (N, 2), level-0 pixels from the viewer's origin, multiples of what `DECIMALS` tells
    apart; outlines run clockwise with x and y as numbers, holes counterclockwise. Regions thinner
    than that are left out. The arguments are those of `write_geojson`.
    """
    least = rule.min_area / frame.mpp**2
    move = partial(_move_points, frame=frame)
    regions = find_regions(read_rows, frame.width, frame.height, excluded, least)
    for group in _group_regions(regions):
        made = make_polygons([region.rings for region in group], move, rule.simplify)
        for region, polygons in zip(group, made):
            if polygons:
                yield region, [[_shorten(ring) for ring in rings] for rings in polygons]


def _group_regions(regions: Iterable[Region]) -> Iterator[list[Region]]:
    """Yields regions in groups that are not too large, in their order."""
    group: list[Region] = []
    corners = 0
    for region in regions:
        group.append(region)
        corners += sum(map(len, region.rings))
        if corners >= _GROUP:
            yield group
            group, corners = [], 0
    if group:
        yield group


def compress(source: Path, target: Path) -> None:
    """Writes what a file holds as gzip, atomically; the same bytes as `write_geojson` at `.gz`."""
    with atomic_path(target) as temporary:
        _compress(source, temporary)


def _compress(source: Path, target: Path) -> None:
    """Writes a gzip file that always has the same bytes: its header has neither name nor time."""
    with (
        source.open("rb") as file,
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
    ):
        # What zlib makes of a text depends on the pieces that it gets.
        shutil.copyfileobj(file, packed, _PIECE)


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """Opens a temporary file to write text, compressed at the end if its name ends in `.gz`."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    with plain.open("w", encoding="utf-8") as file:
        yield file
    if plain != path:
        _compress(plain, path)


class Square(NamedTuple):
    """A square on a slide.

    Attributes:
      name: of the annotation; no other has it.
      left, top, width, height: level-0 pixels. Where pixels are not square, the sides differ.
      measurements: name -> number.
    """

    name: str
    left: float
    top: float
    width: float
    height: float
    measurements: Mapping[str, float]


def write_squares(
    path: Path | str,
    squares: Iterable[Square],
    class_name: str,
    color: Color,
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Writes squares as QuPath annotations of one class, a line each, atomically.

    Args:
      path: ends in `.geojson`.
      squares: in any order.
      class_name, color: of the annotations.
      origin: see `MapFrame.origin`.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, square in enumerate(squares):
            left, top = square.left - origin[0], square.top - origin[1]
            right, bottom = left + square.width, top + square.height
            corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsss_jax/{square.name}")),
                "properties": {
                    "objectType": "annotation",
                    "name": square.name,
                    "classification": {"name": class_name, "color": list(color)},
                    "isLocked": True,
                    "measurements": square.measurements,
                },
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [_round_ring(np.array(corners, np.float64)).tolist()],
                },
            }
            file.write(",\n" * (number > 0) + "\n" * (number == 0) + _to_json(feature))
        file.write("\n]}\n")


def identify_region(region: Region, slide_id: str) -> uuid.UUID:
    """Makes the identifier of a region, which follows from its place and `slide_id`."""
    x, y = region.rings[0][0].tolist()  # upper left of a pixel that no other region has
    return uuid.uuid5(_identify_slide(slide_id), f"{x},{y}")


@lru_cache(maxsize=1)
def _identify_slide(slide_id: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"wsss_jax/{slide_id}")


def _describe_region(
    region: Region, legend: Legend, mpp: float | None, slide_id: str
) -> dict[str, object]:
    """Makes a GeoJSON feature without its geometry; without `mpp` it can be edited."""
    measurements = {} if mpp is None else {AREA: round(region.pixels * mpp**2, 4)}
    return {
        "type": "Feature",
        "id": str(identify_region(region, slide_id)),
        "properties": {
            "objectType": "annotation",
            "classification": {
                "name": legend.names[region.value],
                "color": list(legend.palette[region.value]),
            },
            "isLocked": mpp is not None,
            "measurements": measurements,
        },
    }


class _Rings(NamedTuple):
    """The rings of regions, all in one array.

    Attributes:
      points: (N, 2) corners.
      ring: (N,) int64, the ring of each, ascending.
      region: (R,) int64, the region of each ring, ascending; its outline comes first.
    """

    points: np.ndarray
    ring: np.ndarray
    region: np.ndarray

    def build(self) -> np.ndarray:
        """Builds a polygon of shapely for each region."""
        lines = shapely.linearrings(self.points, indices=self.ring)
        return shapely.polygons(lines, indices=self.region)

    def split(self) -> list[list[np.ndarray]]:
        """Returns a list of rings for each region."""
        ends = np.flatnonzero(np.diff(self.ring, append=-1)) + 1
        regions: list[list[np.ndarray]] = [[] for _ in range(self.region[-1] + 1)]
        start = 0
        for region, end in zip(self.region.tolist(), ends.tolist(), strict=True):
            regions[region].append(self.points[start:end])
            start = end
        return regions


def _pack(regions: Sequence[Sequence[np.ndarray]]) -> _Rings:
    rings = [ring for region in regions for ring in region]
    return _Rings(
        np.concatenate(rings),
        np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]),
        np.repeat(np.arange(len(regions)), [len(region) for region in regions]),
    )


def make_polygons(
    regions: Sequence[list[np.ndarray]], move: Callable[[np.ndarray], np.ndarray], simplify: float
) -> list[list[list[np.ndarray]]]:
    """Makes the polygons of each region, each a list of rings: usually one polygon.

    A region is simplified as far as it stays valid and keeps its area. Rounding may split it into
    several polygons.

    Args:
      regions: the rings of each, see `Region`.
      move: converts (N, 2) corners, one like the other.
      simplify: see `PolygonRule`.
    """
    made: dict[int, list[list[np.ndarray]]] = {}
    # Most regions that lose too much are small: kept exact they cost little.
    for tolerance in (simplify, simplify / 2) if simplify else ():
        left = [number for number in range(len(regions)) if number not in made]
        if not left:
            break
        exact = shapely.area(_pack([regions[number] for number in left]).build())
        simple = _simplify([regions[number] for number in left], tolerance)
        change = np.abs(shapely.area(simple.build()) - exact)
        moved = simple._replace(points=move(simple.points))
        chosen = (change <= CHANGE * exact) & _are_valid(moved)
        polygons = moved.split()
        made |= {left[at]: [polygons[at]] for at in np.flatnonzero(chosen).tolist()}
    left = [number for number in range(len(regions)) if number not in made]
    if left:
        moved = _pack([regions[number] for number in left])
        moved = moved._replace(points=move(moved.points))
        valid = _are_valid(moved).tolist()
        for number, rings, is_valid in zip(left, moved.split(), valid, strict=True):
            made[number] = [rings] if is_valid else _repair(rings)
    return [made[number] for number in range(len(regions))]


def _are_valid(rings: _Rings) -> np.ndarray:
    polygons = rings.build()
    return shapely.is_valid(polygons) & (shapely.area(polygons) > 0)


def _simplify(regions: Sequence[list[np.ndarray]], tolerance: float) -> _Rings:
    """Simplifies regions, those with many corners by `simplify_rings`."""
    simple: list[list[np.ndarray]] = []
    small = [rings for rings in regions if sum(map(len, rings)) < _LARGE]
    if small:
        polygons = shapely.simplify(_pack(small).build(), tolerance)
        lines, region = shapely.get_rings(polygons, return_index=True)
        points, ring = shapely.get_coordinates(lines, return_index=True)
        simple = _Rings(points, ring, region).split()
    if len(small) == len(regions):
        return _Rings(points, ring, region)
    rest = iter(simple)
    return _pack(
        [
            next(rest) if sum(map(len, rings)) < _LARGE else simplify_rings(rings, tolerance)
            for rings in regions
        ]
    )


def _repair(rings: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Makes valid polygons of a region whose rings cross or touch since they were rounded.

    Coordinates stay multiples of what `DECIMALS` tells apart; what has no area there is dropped.
    """
    valid = shapely.make_valid(shapely.Polygon(rings[0], rings[1:]))
    snapped = shapely.set_precision(valid, 10.0**-DECIMALS)
    polygons = []
    # Lines are among the parts, and polygons in parts of parts.
    for part in shapely.get_parts(shapely.get_parts(snapped)):
        if part.geom_type == "Polygon" and part.area > 0:
            outline, *holes = map(shapely.get_coordinates, (part.exterior, *part.interiors))
            rings = [orient_ring(outline, hole=False), *(orient_ring(r, hole=True) for r in holes)]
            polygons.append([_round_ring(ring) for ring in rings])
    return polygons


def _move_points(points: np.ndarray, frame: MapFrame) -> np.ndarray:
    """Converts pixels of the map to level-0 pixels from the viewer's origin, on the slide."""
    on_slide = np.minimum(points * np.asarray(frame.scale), frame.slide_size)
    return np.round(on_slide - np.asarray(frame.origin), DECIMALS)


def _shorten(ring: np.ndarray) -> np.ndarray:
    """Makes whole numbers of a ring that has no others: 7 is shorter than 7.0."""
    whole = ring.astype(np.int64)
    return whole if np.array_equal(whole, ring) else ring


def _round_ring(ring: np.ndarray) -> np.ndarray:
    return _shorten(np.round(ring, DECIMALS))


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _to_json(value: object) -> str:
    return _ENCODER.encode(value)
