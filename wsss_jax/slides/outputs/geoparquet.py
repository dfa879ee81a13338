"""The regions of a label map as GeoParquet: a table with a polygon in each row.

https://geoparquet.org/releases/v1.1.0/; the geometries are well-known binary. Written in groups of
rows, so that a table of any length fits in memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from wsss_jax.files import atomic_path
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.geojson import PolygonRule, identify_region, trace_polygons
from wsss_jax.slides.outputs.regions import ReadRows

ROWS = 10_000  # most rows of a group ...
CORNERS = 2**19  # ... and most corners of its polygons, unless one alone has more
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("slide", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("value", pa.uint8(), nullable=False),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("area_um2", pa.float64(), nullable=False),
        pa.field("area_mm2", pa.float64(), nullable=False),
        pa.field("mpp", pa.float64(), nullable=False),
        pa.field("slide_mpp_x", pa.float64(), nullable=False),
        pa.field("slide_mpp_y", pa.float64(), nullable=False),
        pa.field("geometry", pa.binary(), nullable=False),
    ]
)


class SlideId(NamedTuple):
    """A slide, as its regions name it.

    Attributes:
      name: of the slide.
      unique: text that tells slides apart, see `geojson.write_geojson`.
    """

    name: str
    unique: str


def write_geoparquet(
    path: Path | str,
    read_rows: ReadRows,
    frame: MapFrame,
    legend: Legend,
    slide: SlideId,
    rule: PolygonRule,
) -> None:
    """Writes the regions of a map, a row each, atomically. The same map gives the same bytes.

    Regions, polygons and `id` are those of `geojson.write_geojson`, and so are the coordinates:
    level-0 pixels of the slide from the viewer's origin, x to the right and y down, without a
    reference system. `pixels`, `area_um2` and `area_mm2` are of the region's own pixels on the map,
    whose value is `value` and whose side is `mpp` micrometers; `slide_mpp_x` and `slide_mpp_y` are
    the micrometers of a unit of the coordinates.

    Args:
      path: ends in `.parquet`.
      read_rows, frame, legend, rule: see `geojson.write_geojson`.
      slide: that was mapped.
    """
    bounds: list[np.ndarray] = []
    kinds: set[str] = set()
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer,
    ):
        for rows in _group_rows(_make_rows(read_rows, frame, legend, slide, rule)):
            shapes = [row["geometry"] for row in rows]
            kinds |= {shape.geom_type for shape in shapes}
            bounds.append(shapely.total_bounds(shapes))
            for row, binary in zip(rows, shapely.to_wkb(shapes, byte_order=1)):
                row["geometry"] = binary
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
        writer.add_key_value_metadata({"geo": json.dumps(_describe_geometry(kinds, bounds))})


def _make_rows(
    read_rows: ReadRows, frame: MapFrame, legend: Legend, slide: SlideId, rule: PolygonRule
) -> Iterator[dict[str, Any]]:
    """Yields the rows, each with a geometry of shapely."""
    for region, polygons in trace_polygons(read_rows, frame, legend.excluded, rule):
        # Outlines counterclockwise, as the metadata says.
        shapes = [
            shapely.Polygon(rings[0][::-1], [ring[::-1] for ring in rings[1:]])
            for rings in polygons
        ]
        area = region.pixels * frame.mpp**2
        yield {
            "id": str(identify_region(region, slide.unique)),
            "slide": slide.name,
            "class": legend.names[region.value],
            "value": region.value,
            "pixels": region.pixels,
            "area_um2": area,
            "area_mm2": area / 1e6,
            "mpp": frame.mpp,
            "slide_mpp_x": frame.mpp / frame.scale[0],
            "slide_mpp_y": frame.mpp / frame.scale[1],
            "geometry": shapes[0] if len(shapes) == 1 else shapely.MultiPolygon(shapes),
        }


def _group_rows(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields rows in groups that are not too large."""
    group: list[dict[str, Any]] = []
    corners = 0
    for row in rows:
        group.append(row)
        corners += int(shapely.get_num_coordinates(row["geometry"]))
        if len(group) == ROWS or corners >= CORNERS:
            yield group
            group, corners = [], 0
    if group:
        yield group


def _describe_geometry(kinds: set[str], bounds: list[np.ndarray]) -> dict[str, Any]:
    """Makes the metadata of the column of geometries, of all `kinds` within `bounds`."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(kinds),
        "crs": None,  # pixels
        "edges": "planar",
        "orientation": "counterclockwise",
    }
    if bounds:
        corners = np.array(bounds)
        column["bbox"] = [
            *corners[:, :2].min(axis=0).tolist(),
            *corners[:, 2:].max(axis=0).tolist(),
        ]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
