"""Maps of a slide as pyramidal TIFF: label values, class probabilities, colors.

Maps are read and written in bands (see `regions.ReadRows`): no array of the whole slide is ever in
memory. The same map always gives the same bytes.
"""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from wsss_jax.files import atomic_path
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.regions import ReadRows

TILE = 512  # pixels, side of a tile of the files; the top of a pyramid is no larger
BAND = TILE  # rows read at a time, a multiple of TILE
BATCH = 16  # tiles compressed at a time
CLASSIC_BYTES = 2**31  # uncompressed; above, BigTIFF. Classic TIFF ends at 4 GiB.

ReadChannelRows = Callable[[int, int, int, int], np.ndarray]  # (channel, y0, y1, step) -> rows


def list_steps(width: int, height: int) -> list[int]:
    """Lists the downsampling of the levels: 1, 2, 4, ... until both sides are at most `TILE`."""
    steps = [1]
    while max(width, height) > TILE * steps[-1]:
        steps.append(2 * steps[-1])
    return steps


def write_label_map(path: Path | str, read_rows: ReadRows, frame: MapFrame, legend: Legend) -> None:
    """Writes label values as palette OME-TIFF, nearest neighbor on the lower levels, atomically.

    Programs that know palettes show the colors (OpenSlide, which sees level 0 only, ImageJ,
    tifffile); Bio-Formats and QuPath read the values, and the levels. What a value means is in the
    OME metadata, as key and value. For programs that only read RGB there is `write_color_map`.

    Args:
      path: ends in `.ome.tif`.
      read_rows: reads the map of label values 0..C.
      frame: of the map.
      legend: of the C classes.
    """
    colormap = np.zeros((3, 256), np.uint16)
    colors = np.asarray(legend.palette, np.uint16)
    colormap[:, : len(colors)] = colors.T * 257  # 0..255 to 0..65535
    meanings = {str(value): name for value, name in enumerate([*legend.names, "excluded"])}
    _write(
        path,
        lambda channel, y0, y1, step: read_rows(y0, y1, step),
        (frame.height, frame.width),
        frame.mpp,
        {"Channel": {"Name": "tissue class"}, "MapAnnotation": meanings},
        {"photometric": "palette", "colormap": colormap},
    )


def write_color_map(path: Path | str, read_rows: ReadRows, frame: MapFrame, legend: Legend) -> None:
    """Writes the labels in the classes' colors as a plain RGB pyramid, atomically.

    Its levels are pages one after the other and its resolution is in the usual tags, as OpenSlide
    and the many programs that read through it expect. The arguments are those of `write_label_map`.
    """
    colors = np.asarray(legend.palette, np.uint8)
    shape = (frame.height, frame.width)
    with (
        atomic_path(path) as temporary,
        # Always BigTIFF: tiatoolbox takes no other plain pyramid for a slide.
        tifffile.TiffWriter(temporary, bigtiff=True, byteorder="<") as tiff,
    ):
        for step in list_steps(frame.width, frame.height):
            tiles = _read_tiles(lambda channel, *rows: read_rows(*rows), shape, step)
            tiff.write(
                _compress_tiles(tiles, lambda tile: np.take(colors, tile, axis=0)),
                shape=(*_shrink_shape(shape, step), 3),
                photometric="rgb",
                subfiletype=0 if step == 1 else 1,
                metadata=None,
                **_make_page_options(frame.mpp * step),
            )


def write_probability_maps(
    path: Path | str, read_channel_rows: ReadChannelRows, frame: MapFrame, legend: Legend
) -> None:
    """Writes class probabilities as OME-TIFF, a channel per class, atomically.

    A value v stands for the probability v / 255. Viewers show the channels under the classes'
    names, in their colors.

    Args:
      path: ends in `.ome.tif`.
      read_channel_rows: reads the uint8 map of a class, as `regions.ReadRows` reads labels.
      frame: of the maps.
      legend: of the classes.
    """
    colors = [
        int.from_bytes(bytes([*color, 255]), "big", signed=True)  # opaque RGBA
        for color in legend.palette[: legend.excluded]
    ]
    _write(
        path,
        read_channel_rows,
        (legend.excluded, frame.height, frame.width),
        frame.mpp,
        {"Channel": {"Name": list(legend.names), "Color": colors}},
        {"photometric": "minisblack"},
    )


def _write(
    path: Path | str,
    read: ReadChannelRows,
    shape: tuple[int, ...],
    mpp: float,
    ome_metadata: dict[str, Any],
    photometry: dict[str, Any],
) -> None:
    """Writes an OME-TIFF of shape (height, width) or (channels, height, width).

    `ome_metadata` is added to name, axes and pixel size; `photometry` tells tifffile how to
    interpret the values of every page.
    """
    steps = list_steps(shape[-1], shape[-2])
    name = Path(path).name
    metadata = {
        "axes": "CYX"[-len(shape) :],
        "Name": name.removesuffix(".ome.tif"),
        "Creator": "wsss_jax",
        # tifffile would write a random one; readers only use it to find the parts of split files.
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsss_jax/{name}/{shape}")),
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
        **ome_metadata,
    }
    uncompressed = sum(np.prod(_shrink_shape(shape, step), dtype=int) for step in steps)
    with (
        atomic_path(path) as temporary,
        tifffile.TiffWriter(
            temporary, ome=True, bigtiff=uncompressed > CLASSIC_BYTES, byteorder="<"
        ) as tiff,
    ):
        for step in steps:
            tiff.write(
                _compress_tiles(_read_tiles(read, shape, step)),
                shape=_shrink_shape(shape, step),
                subifds=len(steps) - 1 if step == 1 else None,
                subfiletype=0 if step == 1 else 1,
                metadata=metadata if step == 1 else None,
                **photometry,
                **_make_page_options(mpp * step),
            )


def _make_page_options(mpp: float) -> dict[str, Any]:
    """Returns the options of `TiffWriter.write` that all pages share."""
    return {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "compression": "zlib",
        "resolution": (1e4 / mpp, 1e4 / mpp),
        "resolutionunit": "centimeter",
        "software": "wsss_jax",
    }


def _shrink_shape(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    *channels, height, width = shape
    return (*channels, -(-height // step), -(-width // step))


def _read_tiles(read: ReadChannelRows, shape: tuple[int, ...], step: int) -> Iterator[np.ndarray]:
    """Yields the tiles of a level, row by row, channel by channel; border tiles are smaller."""
    height, channels = shape[-2], shape[0] if len(shape) == 3 else 1
    for channel in range(channels):
        for y0 in range(0, height, BAND * step):
            band = read(channel, y0, min(y0 + BAND * step, height), step)
            for top in range(0, band.shape[0], TILE):
                for left in range(0, band.shape[1], TILE):
                    yield band[top : top + TILE, left : left + TILE]


def _compress_tiles(
    tiles: Iterator[np.ndarray],
    convert: Callable[[np.ndarray], np.ndarray] = np.ascontiguousarray,
) -> Iterator[bytes]:
    """Compresses tiles as tifffile does, those of one value, such as glass, only once.

    Args:
      tiles: (rows, columns) uint8, at most `TILE` of each.
      convert: makes the pixels of a tile, (rows, columns) or (rows, columns, samples) uint8.
    """

    @cache
    def compress_plain(value: int) -> bytes:
        return compress(np.full((TILE, TILE), value, np.uint8))

    def compress(tile: np.ndarray) -> bytes:
        pixels = convert(tile)
        margins = [(0, TILE - side) for side in tile.shape] + [(0, 0)] * (pixels.ndim - 2)
        padded = np.pad(pixels, margins) if np.any(margins) else pixels
        return bytes(imagecodecs.deflate_encode(padded.tobytes()))

    def compress_tile(tile: np.ndarray) -> bytes:
        is_plain = tile.shape == (TILE, TILE) and (tile == tile[0, 0]).all()
        return compress_plain(int(tile[0, 0])) if is_plain else compress(tile)

    with ThreadPoolExecutor() as pool:
        while batch := list(islice(tiles, BATCH)):
            yield from pool.map(compress_tile, batch)
