"""GeoParquet is written by pyarrow; fastparquet and, if it is there, geopandas read it."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from tests.slides.maps import DATASET, Map, draw_map
from wsss_jax.slides.outputs import geojson, geoparquet
from wsss_jax.slides.outputs.geojson import PolygonRule
from wsss_jax.slides.outputs.geoparquet import SlideId

fastparquet = pytest.importorskip("fastparquet")
MAP = draw_map(500, 400)
EXACT = PolygonRule()
SLIDE = SlideId("a <b>slide</b> µ", "unique")


def write(path: Path, label_map: Map = MAP, rule: PolygonRule = EXACT, **frame) -> Path:
    changed = label_map.frame._replace(**frame)
    geoparquet.write_geoparquet(path, label_map.read_rows, changed, label_map.legend, SLIDE, rule)
    return path


def read(path: Path):
    """The table with geometries, and what the file says of them."""
    file = fastparquet.ParquetFile(str(path))
    table = file.to_pandas()
    table["geometry"] = shapely.from_wkb(table["geometry"].to_numpy())
    return table, json.loads(file.key_value_metadata["geo"])


def test_areas_are_those_of_the_pixels(tmp_path):
    table, _ = read(write(tmp_path / "t.parquet"))
    assert set(table["class"]) == set(DATASET.classes[:3])
    for value, (name, count) in enumerate(zip(DATASET.classes, MAP.counts)):
        rows = table[table["class"] == name]
        assert (rows["value"] == value).all() and rows["pixels"].sum() == count
        assert rows["area_um2"].sum() == count  # a pixel is a square micrometer
        assert rows["area_mm2"].sum() == pytest.approx(count / 1e6)
        assert shapely.area(rows["geometry"]).sum() == 4 * count  # pixels of the slide
    assert (table["slide"] == SLIDE.name).all() and (table["mpp"] == 1).all()
    assert (table["slide_mpp_x"] == 0.5).all() and (table["slide_mpp_y"] == 0.5).all()


def test_metadata_are_those_of_geoparquet(tmp_path):
    table, geo = read(write(tmp_path / "t.parquet", origin=(7, 9), scale=(2.0, 3.0)))
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    column = geo["columns"]["geometry"]
    bounds = shapely.total_bounds(table["geometry"].to_numpy()).tolist()
    assert bounds[0] == 2 * 37 - 7 and bounds[1] == -9
    assert column == {
        "encoding": "WKB",
        "geometry_types": sorted({shape.geom_type for shape in table["geometry"]}),
        "crs": None,
        "edges": "planar",
        "orientation": "counterclockwise",
        "bbox": bounds,
    }
    for shape in table["geometry"]:
        assert shape.is_valid and shape.exterior.is_ccw
        assert not any(hole.is_ccw for hole in shape.interiors)


def test_regions_are_those_of_the_annotations(tmp_path):
    rule, scale = PolygonRule(400.0, 1.0), (1.9, 2.3)
    table, _ = read(write(tmp_path / "t.parquet", rule=rule, scale=scale))
    frame = MAP.frame._replace(scale=scale)
    path = tmp_path / "t.geojson"
    geojson.write_geojson(path, MAP.read_rows, frame, MAP.legend, SLIDE.unique, rule)
    features = json.loads(path.read_text())["features"]
    assert table["id"].tolist() == [feature["id"] for feature in features]
    for shape, feature in zip(table["geometry"], features, strict=True):
        assert shape.equals_exact(shapely.geometry.shape(feature["geometry"]))


def test_the_same_map_gives_the_same_bytes_in_groups_of_rows(tmp_path, monkeypatch):
    whole, _ = read(write(tmp_path / "a.parquet"))
    again = write(tmp_path / "b.parquet").read_bytes()
    assert again == (tmp_path / "a.parquet").read_bytes()
    for name, value in (("ROWS", 4), ("CORNERS", 60)):
        with monkeypatch.context() as patch:
            patch.setattr(geoparquet, name, value)
            path = write(tmp_path / "c.parquet")
        assert len(fastparquet.ParquetFile(str(path)).row_groups) >= 5
        table, geo = read(path)
        assert table["id"].tolist() == whole["id"].tolist()
        assert geo["columns"]["geometry"]["bbox"][2:] == [1000, 800]


def test_a_map_without_regions(tmp_path):
    table, geo = read(write(tmp_path / "t.parquet", Map(np.full((9, 9), 4, np.uint8))))
    assert len(table) == 0 and "bbox" not in geo["columns"]["geometry"]


def test_geopandas_reads_it(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    table = geopandas.read_parquet(write(tmp_path / "t.parquet"))
    assert table.crs is None and table.geometry.is_valid.all()
    areas = table.dissolve("value").area  # neighbors do not overlap
    assert (areas / 4).tolist() == MAP.counts[:3]
