"""Reads the tiles of maps that `pyramid` has written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from data.pictures import DAMAGE
from wsss_jax.errors import InputError
from wsss_jax.slides.outputs.pyramid import TILE
from wsss_jax.slides.reading.cache import Cache

CACHE_BYTES = 32 << 20  # of tiles, for each file


class TiledPyramid:
    """An open map: a label map, or one channel per class. Several threads may read it.

    Attributes:
      channels: how many there are.
      sizes: (width, height) of each level; level k has every 2^k-th pixel along both axes.
    """

    def __init__(self, path: Path, file: tifffile.TiffFile):
        self._path, self._file = path, file
        levels = file.series[0].levels
        self._pages = [list(level.pages) for level in levels]
        self.channels = len(self._pages[0])
        self.sizes = [level.shape[::-1][:2] for level in levels]
        page = file.pages[0]
        if (page.tilelength, page.tilewidth) != (TILE, TILE) or page.dtype != np.uint8:
            raise describe_damage(path, "not a map of this program")
        self._cache = Cache(CACHE_BYTES)

    def read(
        self, level: int, channel: int, left: int, top: int, width: int, height: int
    ) -> np.ndarray:
        """Reads a region of a level, in its pixels, inside of it.

        Returns:
          (height, width) uint8.

        Raises:
          InputError: the file is damaged there.
        """
        pixels = np.empty((height, width), np.uint8)
        for row in range(top // TILE, -(-(top + height) // TILE)):
            for column in range(left // TILE, -(-(left + width) // TILE)):
                tile = self._get_tile(level, channel, row, column)
                y0, x0 = row * TILE, column * TILE
                first_y, first_x = max(top, y0), max(left, x0)
                last_y, last_x = min(top + height, y0 + TILE), min(left + width, x0 + TILE)
                pixels[first_y - top : last_y - top, first_x - left : last_x - left] = tile[
                    first_y - y0 : last_y - y0, first_x - x0 : last_x - x0
                ]
        return pixels

    def _get_tile(self, level: int, channel: int, row: int, column: int) -> np.ndarray:
        key = level, channel, row, column
        return self._cache.get(key, lambda: self.read_tile(level, channel, row, column))

    def read_tile(self, level: int, channel: int, row: int, column: int) -> np.ndarray:
        """Reads a tile past the cache: (TILE, TILE) uint8, also where the map ends before it does.

        Raises:
          InputError: the file is damaged there.
        """
        page = self._pages[level][channel]
        index = row * -(-self.sizes[level][0] // TILE) + column
        try:
            # Not through tifffile's file, whose position threads would share.
            data = os.pread(
                self._file.filehandle.fileno(), page.databytecounts[index], page.dataoffsets[index]
            )
            return page.keyframe.decode(data, index)[0][0, :, :, 0]
        except (*DAMAGE, RuntimeError) as error:
            raise describe_damage(self._path, error) from error


@contextmanager
def open_pyramid(path: Path) -> Iterator[TiledPyramid]:
    """Opens a map.

    Raises:
      InputError: it is missing, damaged, or not of this program.
    """
    try:
        file = tifffile.TiffFile(path)
    except (*DAMAGE, tifffile.TiffFileError) as error:
        raise describe_damage(path, error) from error
    with file:
        yield TiledPyramid(path, file)


def describe_damage(path: Path, problem: object) -> InputError:
    """Makes the error about a map that cannot be read."""
    return InputError(f"{path}: missing or damaged ({problem}); run the job 'segment' again")
