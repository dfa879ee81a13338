"""The picture of a slide's map while it is computed: first coarse, then part by part.

It changes nothing of the results, and is gone when the work on the slide ends.
"""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsss_jax.masks import WhiteRule, find_white_background
from wsss_jax.report import slide_pictures
from wsss_jax.slides.mapping import stitching
from wsss_jax.slides.mapping.coarse_map import CoarseMap, CoarseTiles, choose_tiles
from wsss_jax.slides.mapping.parts import Part, Parts
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.slides.outputs import result_files, thumbnails
from wsss_jax.slides.reading.view import View
from wsss_jax.wording import format_count

_WHITE = 255


class Preview:
    """The picture `preview.png` in the folder of a slide."""

    def __init__(
        self,
        path: Path,
        sources: result_files.Sources,
        inputs: stitching.MapInputs,
        overview: np.ndarray,
        parts: Parts,
    ):
        """Begins a picture; nothing is written yet.

        Args:
          path: of the picture.
          sources: the slide, and the configuration with the fields `preview`.
          inputs: what the map is computed from.
          overview: the slide, uint8 RGB.
          parts: of the map.
        """
        self._path, self._sources, self._inputs, self._parts = path, sources, inputs, parts
        self._thumbnail = thumbnails.shrink_overview(overview, sources.config.picture)
        pixels = thumbnails.find_map_pixels(self._thumbnail, sources.frame)
        self._map = CoarseMap(pixels, self._find_tissue(*pixels), inputs.num_classes)
        self._shown: set[Part] = set()
        self._tiles = ""  # what the coarse tiles in the picture are
        self._is_new = False  # whether there are coarse tiles that were not written
        self._written = -np.inf

    def _find_tissue(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Finds, as well as the thumbnail shows it, where the map has classes; (h, w) bool."""
        tissue, rule = self._inputs.tissue, self._inputs.white
        found = np.stack([tissue.read(0, y, tissue.width, 1)[0, columns] for y in rows.tolist()])
        if rule:
            pixel = tissue.width / len(columns)
            coarse = WhiteRule(rule.threshold, max(1, round(rule.min_area / pixel**2)))
            found &= ~find_white_background(self._thumbnail, coarse)
        return found

    def begin(self, tiling: Tiling, total: int, after_batch: Callable[[], None]) -> None:
        """Shows the parts that there are or, if there is none, coarse tiles.

        Args:
          tiling: the grid of tiles.
          total: tiles of the exact map.
          after_batch: called after each batch; its errors end the work.
        """
        if self._parts.finished:
            self._write()
            return
        tiles = choose_tiles(self._inputs.tissue, tiling, self._sources.config.preview.share, total)
        if not len(tiles.places):
            return
        tqdm.write(
            f"{self._sources.file.name}: first a coarse map, {self._path}, of "
            f"{format_count(len(tiles.places), 'tile')}: {len(tiles.places) / total:.1%} more than "
            f"the {total:,} of the map"
        )
        self._add_tiles(tiles, tiling, after_batch)
        self._write()

    def _add_tiles(
        self, tiles: CoarseTiles, tiling: Tiling, after_batch: Callable[[], None]
    ) -> None:
        size, count = tiling.batch_size, len(tiles.places)
        batches = np.split(tiles.places, range(size, count, size))
        inputs = self._inputs._replace(read=_make_reader(self._sources.view))
        done = 0
        with closing(stitching.predict_batches(inputs, tiling, batches)) as results:
            for batch, probabilities in results:
                reaches = tiles.reaches[done : done + len(batch)]
                for (x, y), reach, each in zip(batch.tolist(), reaches.tolist(), probabilities):
                    self._map.add_tile(x, y, each, reach)
                done += len(batch)
                self._tiles = (
                    f"Coarse: 1 tile of {tiles.every} x {tiles.every}, {done} of {count} done. "
                    "Pale: main class of the nearest"
                )
                self._is_new = True
                self.refresh()
                after_batch()

    def refresh(self) -> None:
        """Writes the picture again if it is `preview.seconds` old and there is something new."""
        if time.monotonic() - self._written < self._sources.config.preview.seconds:
            return
        if self._is_new or len(self._parts.finished) > len(self._shown):
            self._write()

    def _write(self) -> None:
        for part in self._parts.finished:
            if part not in self._shown:
                self._map.add_part(part, self._parts.read_part(part))
                self._shown.add(part)
        pictures = slide_pictures.SlidePictures(
            self._thumbnail,
            self._map.labels,
            thumbnails.measure_pixel(self._thumbnail, self._sources.frame),
            self._sources.picture_legend,
        )
        parts = format_count(self._parts.count, "part")
        title = [f"Preview of a map at work: {len(self._shown)} of {parts} final"]
        if self._tiles:
            title.append(self._tiles)
        slide_pictures.write_preview(self._path, pictures, self._map.is_guess, title)
        self._is_new, self._written = False, time.monotonic()


def _make_reader(view: View) -> stitching.Read:
    """Makes what reads tiles far from each other: of the slide, only what they cover is decoded."""

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        inside = view.read_alone(x, y, width)
        image = np.full((height, width, 3), _WHITE, np.uint8)
        image[: inside.shape[0], : inside.shape[1]] = inside
        return image

    return read
