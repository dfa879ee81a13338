"""Maps of a slide as pyramidal TIFF, streamed: labels, one probability a class, colors to look at.

Every map is read in bands through a function `read_rows(y0, y1, step)` that returns the uint8 rows
y0, y0 + step, ... below y1 and of each the columns 0, step, ...: no array of the whole slide is
ever held. The same map always makes the same bytes.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from wsss_jax.files import atomic_path

TILE = 512  # pixels, side of a tile of the files; the top of a pyramid is no larger
BAND = TILE  # rows asked for at a time, a multiple of TILE
BUFFER = 2**24  # bytes of tiles compressed in one pass; tifffile takes 2**29, most of a slide
CLASSIC_BYTES = 2**31  # uncompressed; above, BigTIFF. Classic TIFF ends at 4 GiB.

ReadRows = Callable[[int, int, int], np.ndarray]
ReadChannelRows = Callable[[int, int, int, int], np.ndarray]
Color = tuple[int, int, int]


def steps(width: int, height: int) -> list[int]:
    """Downsampling of each level, 1 first: doubled until the longer side is at most `TILE`."""
    result = [1]
    while max(width, height) > TILE * result[-1]:
        result.append(2 * result[-1])
    return result


def write_label_map(
    path: Path | str,
    read_rows: ReadRows,
    width: int,
    height: int,
    *,
    mpp: float,
    palette: Sequence[Color],
    names: Sequence[str],
) -> None:
    """Writes label values as palette OME-TIFF, nearest neighbour on the lower levels, atomically.

    Programs that know palettes show the colors (OpenSlide, which sees level 0 only, ImageJ,
    tifffile); Bio-Formats and QuPath read the values, and the levels. What a value means is in the
    OME metadata, as key and value. Programs that only read RGB want `write_color_map`.

    Args:
      path: ends in `.ome.tif`.
      read_rows: (y0, y1, step) -> (ceil((y1 - y0) / step), ceil(width / step)) uint8 of 0..C.
      width: of the map in pixels.
      height: likewise.
      mpp: micrometres per pixel.
      palette: C + 1 RGB colors (0..255), the last one of excluded pixels.
      names: C class names.
    """
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, : len(palette)] = np.asarray(palette, np.uint16).T * 257  # 0..255 to 0..65535
    meanings = {str(value): name for value, name in enumerate([*names, "excluded"])}
    _write(
        path,
        lambda channel, y0, y1, step: read_rows(y0, y1, step),
        (height, width),
        mpp,
        {"Channel": {"Name": "tissue class"}, "MapAnnotation": meanings},
        {"photometric": "palette", "colormap": colormap},
    )


def write_color_map(
    path: Path | str,
    read_rows: ReadRows,
    width: int,
    height: int,
    *,
    mpp: float,
    palette: Sequence[Color],
) -> None:
    """Writes the labels in the classes' colors as a plain RGB pyramid, atomically.

    Its levels are pages one after the other, as OpenSlide and the many programs that read through
    it want them, and its resolution is in the usual tags. The same arguments as `write_label_map`.
    """
    colors = np.asarray(palette, np.uint8)
    levels = steps(width, height)
    shapes = [(*_level_shape((height, width), step), 3) for step in levels]
    with (
        atomic_path(path) as temporary,
        # Always BigTIFF: tiatoolbox takes no other plain pyramid for a slide.
        tifffile.TiffWriter(temporary, bigtiff=True, byteorder="<") as tiff,
    ):
        for step, shape in zip(levels, shapes, strict=True):
            tiles = _tiles(lambda channel, *rows: read_rows(*rows), 1, height, step)
            tiff.write(
                map(colors.__getitem__, tiles),
                shape=shape,
                photometric="rgb",
                subfiletype=0 if step == 1 else 1,
                metadata=None,
                **_common(mpp * step),
            )


def write_probability_maps(
    path: Path | str,
    read_channel_rows: ReadChannelRows,
    width: int,
    height: int,
    *,
    mpp: float,
    palette: Sequence[Color],
    names: Sequence[str],
) -> None:
    """Writes class probabilities as OME-TIFF, a channel a class, atomically.

    A value v stands for the probability v / 255. Viewers show the channels under the classes'
    names, in their colors.

    Args:
      path: ends in `.ome.tif`.
      read_channel_rows: (channel, y0, y1, step) -> uint8 rows of a class, as `read_rows` of
        `write_label_map`.
      width: of the maps in pixels.
      height: likewise.
      mpp: micrometres per pixel.
      palette: RGB colors (0..255) of the classes; a further one is ignored.
      names: C class names.
    """
    colors = [_ome_color(color) for color in palette[: len(names)]]
    _write(
        path,
        read_channel_rows,
        (len(names), height, width),
        mpp,
        {"Channel": {"Name": list(names), "Color": colors}},
        {"photometric": "minisblack"},
    )


def _write(
    path: Path | str,
    read: ReadChannelRows,
    shape: tuple[int, ...],
    mpp: float,
    meaning: dict[str, Any],
    look: dict[str, Any],
) -> None:
    """Writes (height, width) or (channels, height, width); `look`: photometry of every page."""
    *channels, height, width = shape
    levels = steps(width, height)
    name = Path(path).name
    metadata = {
        "axes": "YX" if not channels else "CYX",
        "Name": name.removesuffix(".ome.tif"),
        "Creator": "wsss_jax",
        # tifffile would put a random one; readers only use it to find the parts of split files.
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsss_jax/{name}/{shape}")),
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
        **meaning,
    }
    uncompressed = sum(np.prod(_level_shape(shape, step), dtype=int) for step in levels)
    with (
        atomic_path(path) as temporary,
        tifffile.TiffWriter(
            temporary, ome=True, bigtiff=uncompressed > CLASSIC_BYTES, byteorder="<"
        ) as tiff,
    ):
        for step in levels:
            tiff.write(
                _tiles(read, channels[0] if channels else 1, height, step),
                shape=_level_shape(shape, step),
                subifds=len(levels) - 1 if step == 1 else None,
                subfiletype=0 if step == 1 else 1,
                metadata=metadata if step == 1 else None,
                **look,
                **_common(mpp * step),
            )


def _common(mpp: float) -> dict[str, Any]:
    """What all pages have, by micrometers per pixel."""
    return {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "compression": "zlib",
        "buffersize": BUFFER,
        "resolution": (1e4 / mpp, 1e4 / mpp),
        "resolutionunit": "centimeter",
        "software": "wsss_jax",
    }


def _level_shape(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    *channels, height, width = shape
    return (*channels, -(-height // step), -(-width // step))


def _tiles(read: ReadChannelRows, channels: int, height: int, step: int) -> Iterator[np.ndarray]:
    """The tiles of a level, row by row, channel after channel; those at the border are smaller."""
    for channel in range(channels):
        for y0 in range(0, height, BAND * step):
            band = read(channel, y0, min(y0 + BAND * step, height), step)
            for top in range(0, band.shape[0], TILE):
                for left in range(0, band.shape[1], TILE):
                    yield band[top : top + TILE, left : left + TILE]


def _ome_color(color: Color) -> int:
    """RGBA in a signed 32-bit integer, opaque."""
    return int.from_bytes(bytes([*color, 255]), "big", signed=True)
