"""The finished parts of a slide's map, a file each, so that a killed run resumes after the last.

A slide is cut into strips of columns, each strip from top to bottom into parts. A part's file holds
its labels, compressed, and after them one map of probabilities per class where those are kept. It
names by checksum the settings it was made with, and has one over all of itself: a file that a crash
cut short, or that was made with other settings, counts as missing.
"""

import dataclasses
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, clear_unfinished

STRIP = 8192  # columns of a strip
ROWS = 1024  # rows of a part
SETTINGS_FILE = "settings.json"
_HEADER = struct.Struct("<II")  # CRC-32 of all that follows it, CRC-32 of the settings
_DIGITS = 7 * "[0-9]"  # of a position in a part's name, as a pattern
_LEVEL = 1  # of zlib: five times as fast as the default, half as much again in bytes


class Part(NamedTuple):
    """A rectangle of working pixels: columns x0 to x1 and rows y0 to y1, without x1 and y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the map of a slide is cut into parts.

    Attributes:
      width, height: of the slide in working pixels.
      strip: columns of a part.
      rows: rows of a part.
    """

    width: int
    height: int
    strip: int = STRIP
    rows: int = ROWS

    @cached_property
    def parts(self) -> list[Part]:
        """All parts in the order of the work: strip by strip, from top to bottom."""
        return [
            Part(x, y, min(x + self.strip, self.width), min(y + self.rows, self.height))
            for x in range(0, self.width, self.strip)
            for y in range(0, self.height, self.rows)
        ]


class Parts:
    """A folder of parts, to write and to read. One process at a time may work in it.

    Reading holds at most one row of parts in memory, `rows` times the width in bytes. It is fastest
    from top to bottom, one kind of map after the other.

    Attributes:
      width, height: of the slide in working pixels.
      channels: maps of probabilities in each part; 0 where only labels are kept.
      folder, layout: where the parts are, and how the map is cut.
    """

    def __init__(
        self, folder: Path | str, layout: Layout, settings: Mapping[str, Any], channels: int = 0
    ):
        """Opens or starts a folder. Checks every part in it, and removes those of other settings.

        Args:
          folder: where the parts are; created if missing.
          layout: how the map is cut.
          settings: all that the map depends on, as JSON values: the slide and its resolution, tile,
            stride, window, batch size, checksums of the networks, ...
          channels: maps of probabilities to keep; if 0, parts that have some are kept, too.
        """
        self.folder = Path(folder)
        if not channels:
            channels = self._read_channels(settings, layout)
        self.width, self.height, self.channels = layout.width, layout.height, channels
        self.layout = layout
        self._row_by_row = sorted(layout.parts, key=lambda part: part.y0)
        self._sizes = struct.Struct(f"<{1 + channels}Q")  # bytes of each map
        # Not a cached method: an object that refers to itself is freed late.
        self._decode = lru_cache(maxsize=-(-layout.width // layout.strip))(
            partial(_decode, self._sizes)
        )
        text = _format_settings(settings, layout, channels)
        self._settings_crc = zlib.crc32(text.encode())
        self._write_settings(text)
        self._finished = {part for part in layout.parts if self._is_whole(self._path(part))}

    def _read_channels(self, settings: Mapping[str, Any], layout: Layout) -> int:
        """Reads how many maps of probabilities the parts have; 0 if they are of other settings."""
        path = self.folder / SETTINGS_FILE
        before = path.read_bytes() if path.is_file() else b""
        texts = (_format_settings(settings, layout, channels) for channels in range(256))
        return next((channels for channels, text in enumerate(texts) if text.encode() == before), 0)

    def _write_settings(self, text: str) -> None:
        """Writes the settings; first removes parts that were made with others."""
        path = self.folder / SETTINGS_FILE
        before = path.read_bytes() if path.is_file() else None
        clear_unfinished(self.folder)
        if before == text.encode():
            return
        if before is not None:
            print(
                f"{self.folder} holds parts made with {_describe_changes(before, text)}: "
                "started again"
            )
            for stale in self.folder.glob(f"part_x{_DIGITS}_y{_DIGITS}.bin"):
                stale.unlink()
        with atomic_path(path) as temporary:
            temporary.write_text(text)

    def _path(self, part: Part) -> Path:
        return self.folder / f"part_x{part.x0:07d}_y{part.y0:07d}.bin"

    def _is_whole(self, path: Path) -> bool:
        content = path.read_bytes() if path.is_file() else b""
        if len(content) < _HEADER.size:
            return False
        crc, settings_crc = _HEADER.unpack_from(content)
        return (
            settings_crc == self._settings_crc
            and zlib.crc32(memoryview(content)[_HEADER.size - 4 :]) == crc
        )

    @property
    def missing(self) -> list[Part]:
        """The parts that are not finished, in the order of the work."""
        return [part for part in self.layout.parts if part not in self._finished]

    @property
    def finished(self) -> list[Part]:
        """The parts that are finished, in the order of the work."""
        return [part for part in self.layout.parts if part in self._finished]

    @property
    def count(self) -> int:
        """How many parts there are, finished or not."""
        return len(self.layout.parts)

    def write(self, part: Part, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Writes a part, whole or not at all.

        Args:
          part: one of `missing`.
          labels: (rows, columns) uint8.
          probabilities: (channels, rows, columns) uint8, 0 to 255 for 0 to 1.
        """
        maps = [_encode(array) for array in (labels, *probabilities)]
        content = b"".join([self._sizes.pack(*map(len, maps)), *maps])
        settings_crc = struct.pack("<I", self._settings_crc)
        crc = zlib.crc32(content, zlib.crc32(settings_crc))
        with atomic_path(self._path(part)) as temporary, temporary.open("wb") as file:
            file.write(_HEADER.pack(crc, self._settings_crc))
            file.write(content)
        self._finished.add(part)

    def read_part(self, part: Part) -> np.ndarray:
        """Reads the labels of a finished part, (rows, columns) uint8, and does not keep them.

        Raises:
          InputError: it was damaged since the folder was opened.
        """
        return _decode(self._sizes, self._path(part), part.shape, 0)

    def iterate(self) -> Iterator[tuple[Part, Callable[[int], np.ndarray]]]:
        """Yields each part with what reads its maps, each decoded once: for sums over the slide.

        The function takes 0 for the labels and 1 + c for the probabilities of class c, and returns
        (rows, columns) uint8, not to be changed. All parts must be finished.

        Raises:
          InputError: a part was damaged since the folder was opened.
        """
        for part in self.layout.parts:
            yield part, partial(_decode, self._sizes, self._path(part), part.shape)

    def read(self, y0: int, y1: int, step: int = 1) -> np.ndarray:
        """Reads the labels of rows y0, y0 + step, ... below y1 and of columns 0, step, ...

        All parts with one of these pixels must be finished; 0 <= y0 < y1 <= height.

        Returns:
          (rows, columns) uint8.

        Raises:
          InputError: a part was damaged since the folder was opened.
        """
        return self._read(0, y0, y1, step)

    def read_probability(self, channel: int, y0: int, y1: int, step: int = 1) -> np.ndarray:
        """Reads the probability of a class as `read` does labels: uint8, 0 to 255 for 0 to 1."""
        return self._read(1 + channel, y0, y1, step)

    def _read(self, index: int, y0: int, y1: int, step: int) -> np.ndarray:
        pixels = np.empty((len(range(y0, y1, step)), len(range(0, self.width, step))), np.uint8)
        # Row by row: the parts that one call decodes last are the first that the next one needs.
        for part in self._row_by_row:
            # Row i of the result is row y0 + i * step of the slide, column j is column j * step.
            i0, i1 = (max(0, -(-(y - y0) // step)) for y in (part.y0, min(part.y1, y1)))
            j0, j1 = (-(-x // step) for x in (part.x0, part.x1))
            if i0 < i1 and j0 < j1:
                top, left = y0 + i0 * step - part.y0, j0 * step - part.x0
                whole = self._decode(self._path(part), part.shape, index)
                pixels[i0:i1, j0:j1] = whole[top : y1 - part.y0 : step, left::step]
        return pixels


def _format_settings(settings: Mapping[str, Any], layout: Layout, channels: int) -> str:
    geometry = {
        "size": [layout.width, layout.height],
        "part": [layout.strip, layout.rows],
        "channels": channels,
    }
    return json.dumps({**settings, "layout": geometry}, indent=2, sort_keys=True) + "\n"


def _encode(array: np.ndarray) -> bytes:
    """Compresses a map; one with a single value, like glass, as a single pixel."""
    uniform = array.min() == array.max()
    return zlib.compress(array.reshape(-1)[:1] if uniform else np.ascontiguousarray(array), _LEVEL)


def _decode(sizes: struct.Struct, path: Path, shape: tuple[int, int], index: int) -> np.ndarray:
    """Decodes one map of a part's file: the labels (index 0) or the probabilities of a class."""
    try:
        with path.open("rb") as file:
            file.seek(_HEADER.size)
            lengths = sizes.unpack(file.read(sizes.size))
            file.seek(sum(lengths[:index]), os.SEEK_CUR)
            content = zlib.decompress(file.read(lengths[index]))
        pixels = np.frombuffer(content, np.uint8)
        return np.broadcast_to(pixels, shape) if pixels.size == 1 else pixels.reshape(shape)
    except (struct.error, zlib.error, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}): give the same command again to compute it again"
        ) from error


def _describe_changes(before: bytes, now: str) -> str:
    """Names the settings that changed."""
    try:
        old, new = json.loads(before), json.loads(now)
    except ValueError:
        return "settings that cannot be read"
    return f"another {', '.join(list_changes(old, new))}"


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists the names of the settings that differ, sorted."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
