"""How often the tiles of a slide are decoded while its map is made, and how long reading takes.

    python -m benchmarks.reading

Drawn slides of one and of three strips, with a level 1, 2 and 4 times as fine as the map. An oval
section lies on glass, all of which is in the map. Every decoding of a tile of the level is counted,
separately for the overview (for the search of tissue), the search for white tiles, and the map.
"""

import argparse
import functools
import io
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from benchmarks import measure
from data.synthetic_slides import TILE, draw_section
from wsss_jax.masks import WhiteRule
from wsss_jax.slides.mapping import white_tiles
from wsss_jax.slides.mapping.parts import Layout, Parts
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.stitching import MapInputs, list_shared_columns, stitch
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.outputs.result_files import OVERVIEW
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View

MPP = 1.0  # of the map
TILING = Tiling(224, 112, "flat", 16)
WIDTHS = 8192, 20_000  # working pixels: one strip, three strips
_COARSE = 2  # times coarser than the map: the level of the overview


class Decodes:
    """Counts decoded tiles of a level; see `count_decodes`."""

    def __init__(self) -> None:
        self._tiles: list[int] = []

    def add(self, tile: int) -> None:
        """Counts a tile; threads may call it."""
        self._tiles.append(tile)

    def take(self) -> tuple[int, int]:
        """Returns the decodes and the different tiles since the last call."""
        counted, self._tiles = Counter(self._tiles), []
        return counted.total(), len(counted)


@contextmanager
def count_decodes() -> Iterator[dict[tuple[int, int], Decodes]]:
    """Counts what tifffile decodes of files opened in the context: (width, height) -> decodes."""
    counts: dict[tuple[int, int], Decodes] = {}
    original = tifffile.TiffPage.decode

    def get_decoder(page: tifffile.TiffPage) -> Any:
        decode = original.func(page)
        of_level = counts.setdefault((page.imagewidth, page.imagelength), Decodes())

        def count(data: bytes, index: int, **options: Any) -> Any:
            of_level.add(index)
            return decode(data, index, **options)

        return count

    tifffile.TiffPage.decode = property(get_decoder)
    try:
        yield counts
    finally:
        tifffile.TiffPage.decode = original


def write_slide(path: Path, width: int, height: int, ratio: float) -> tuple[int, int]:
    """Writes a slide of width x height working pixels with a level `ratio` times as fine.

    Tiles are encoded once and repeated, so that large slides take seconds. The slide has a coarse
    level, too.

    Returns:
      the width and height of the level.
    """
    size = round(width * ratio), round(height * ratio)
    metadata: dict[str, Any] = {"axes": "YXS"}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": MPP / ratio, f"PhysicalSize{axis}Unit": "µm"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        for factor in (1, round(_COARSE * ratio)):
            wide, tall = size[0] // factor, size[1] // factor
            writer.write(
                _iterate_encoded(wide, tall),
                shape=(tall, wide, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                metadata=metadata if factor == 1 else None,
                subifds=int(factor == 1),
                subfiletype=int(factor > 1),
            )
    return size


def _iterate_encoded(width: int, height: int) -> Iterator[bytes]:
    """Yields the tiles of a section of this size, row by row, as JPEG."""
    section = draw_section(width, height)

    @functools.cache
    def encode(content: bytes) -> bytes:
        file = io.BytesIO()
        Image.frombytes("RGB", (TILE, TILE), content).save(file, "JPEG", quality=85, keep_rgb=True)
        return file.getvalue()

    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            yield encode(section.draw_tile(x, y).tobytes())


class Reading(NamedTuple):
    """The decodes and the processor seconds of making a map without networks.

    Each has the decodes and the different tiles.

    Attributes:
      overview: of the whole slide at low resolution, all levels.
      white: of the search for white tiles, in the level that is mapped.
      map: of stitching with empty caches, in that level.
      seconds: for stitching.
    """

    overview: tuple[int, int]
    white: tuple[int, int]
    map: tuple[int, int]
    seconds: float


def read_slide(path: Path, size: tuple[int, int], tiling: Tiling, layout: Layout) -> Reading:
    """Makes the map of a slide with a network that costs nothing.

    Args:
      path: of the slide.
      size: width and height of the level that is mapped.
      tiling, layout: of the map.
    """
    constant = np.ones((tiling.batch_size, tiling.tile, tiling.tile, 1), np.float32)
    tissue = Tissue.everywhere(layout.width, layout.height)
    plan = Plan.of(tissue, tiling)

    def collect_inputs(view: View) -> MapInputs:
        return MapInputs(view.read, tissue, lambda images: constant, 1, WhiteRule())

    with count_decodes() as counts, open_slide(path) as slide:
        view = View(slide, MPP)
        for of_level in counts.values():
            of_level.take()  # of the checks on opening
        overview, factor = view.read_overview(OVERVIEW)
        of_levels = [of_level.take() for of_level in counts.values()]
        is_white = white_tiles.find(collect_inputs(view), plan, overview, factor)
        of_white = counts[size].take()
    with count_decodes() as counts, open_slide(path) as slide:
        view = View(slide, MPP)
        counts[size].take()
        inputs, plan = collect_inputs(view), plan.without(is_white)
        start = time.process_time()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            parts = Parts(folder, layout, {})
            shared = list_shared_columns(inputs, plan, layout)
            with view.share_columns(shared, parts.folder):
                stitch(inputs, plan, parts)
        seconds = time.process_time() - start
        of_map = counts[size].take()
    of_overview = sum(total for total, _ in of_levels), sum(tiles for _, tiles in of_levels)
    return Reading(of_overview, of_white, of_map, seconds)


def _average(decodes: int, tiles: int) -> float | None:
    """Returns decodes per tile; None if there was nothing to decode."""
    return decodes / tiles if tiles else None


def run(
    ratios: list[float], widths: list[int], height: int, tiling: Tiling = TILING
) -> list[dict[str, Any]]:
    rows = []
    for ratio in ratios:
        for width in widths:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "slide.tif"
                size = write_slide(path, width, height, ratio)
                reading = read_slide(path, size, tiling, Layout(width, height))
            rows.append(
                {
                    "level pixels per working pixel": ratio,
                    "columns": width,
                    "tiles": reading.map[1],
                    "decodes per tile, map": _average(*reading.map),
                    "white search": _average(*reading.white),
                    "overview": _average(*reading.overview),
                    "processor s": reading.seconds,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--height", type=int, default=12_000)
    args = parser.parse_args()
    measure.report("reading", vars(args), run(args.ratios, args.widths, args.height))


if __name__ == "__main__":
    main()
