"""Time for each file that is made of a finished label map, on a noisy map and on a structured one.

    python -m benchmarks.polygons --side 4000

The maps are drawn: the most likely of four classes in noise that is smoothed over about a pixel, as
a network gives that has learned nothing, and over about 20 pixels, as tissue looks. Around the map
lies glass. Seconds are those of the processor, so that other work on the machine counts little.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import measure
from configs import base_slides
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import areas, geojson, geoparquet, places, pyramid

CLASSES = ("tumor", "stroma", "lymphocytes", "necrosis")
LEGEND = Legend(CLASSES, [(200, 0, 0), (150, 200, 150), (160, 90, 160), (50, 50, 50), (255,) * 3])
MPP = 0.5
MAPS = {"noisy": 1.2, "structured": 20.0}  # name -> standard deviation of the smoothing, pixels


def draw_map(side: int, smoothing: float, glass: float = 0.1) -> np.ndarray:
    """Draws a square map of `side` pixels, of which a share at each border is glass."""
    rng = np.random.default_rng(0)
    best, labels = np.full((side, side), -np.inf, np.float32), np.zeros((side, side), np.uint8)
    for value in range(len(CLASSES)):
        field = cv2.GaussianBlur(rng.random((side, side), np.float32), (0, 0), smoothing)
        field = (field - field.mean()) / field.std() - 0.3 * value
        labels[field > best] = value
        best = np.maximum(best, field)
    inside = slice(round(glass * side), side - round(glass * side))
    framed = np.full_like(labels, len(CLASSES))
    framed[inside, inside] = labels[inside, inside]
    return framed


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Writes all files of each map once; returns a row for each file."""
    rows = []
    for name, smoothing in MAPS.items():
        labels = draw_map(args.side, smoothing)
        with tempfile.TemporaryDirectory() as folder:
            seconds = time_files(labels, Path(folder))
        total = sum(seconds.values())
        rows += [
            {"map": name, "file": file, "s": second, "share": second / total}
            for file, second in [*seconds.items(), ("all", total)]
        ]
    return rows


def time_files(labels: np.ndarray, folder: Path) -> dict[str, float]:
    """Writes the files of a map; returns the seconds of the processor for each."""
    height, width = labels.shape
    frame = MapFrame(width, height, MPP, (1.0, 1.0), (width, height))
    defaults = base_slides.segment("", "", "").geojson
    rule = geojson.PolygonRule(defaults.min_area, defaults.simplify)
    slide = geoparquet.SlideId("slide", "slide")

    def read_rows(y0: int, y1: int, step: int) -> np.ndarray:
        return labels[y0:y1:step, ::step]

    files: dict[str, Callable[[], Any]] = {
        "label map": lambda: pyramid.write_label_map(
            folder / "map.ome.tif", read_rows, frame, LEGEND
        ),
        "label map in colors": lambda: pyramid.write_color_map(
            folder / "map.tif", read_rows, frame, LEGEND
        ),
        "polygons": lambda: geojson.write_geojson(
            folder / "map.geojson", read_rows, frame, LEGEND, "slide", rule
        ),
        "GeoParquet": lambda: geoparquet.write_geoparquet(
            folder / "map.parquet", read_rows, frame, LEGEND, slide, rule
        ),
        "areas": lambda: areas.count_pixels(read_rows, height, len(CLASSES)),
        "largest regions": lambda: places.find_largest_regions(read_rows, frame, CLASSES),
    }
    seconds = {}
    for name, write in files.items():
        start = time.process_time()
        write()
        seconds[name] = time.process_time() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=4000, help="of the maps, pixels")
    args = parser.parse_args()
    measure.report("polygons", vars(args), run(args))


if __name__ == "__main__":
    main()
