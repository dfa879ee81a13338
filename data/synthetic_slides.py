"""Slides drawn by a program, as pyramidal TIFF: of any size, in little memory."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import tifffile

TILE = 256  # pixels, side of a tile
Style = Literal["aperio", "generic", "ome"]


class Drawing(NamedTuple):
    """An image that is drawn tile by tile.

    Attributes:
      width, height: pixels.
      draw_tile: (x, y), multiples of 256 -> (256, 256, 3) uint8.
    """

    width: int
    height: int
    draw_tile: Callable[[int, int], np.ndarray]


def write_pyramid(
    path: Path,
    drawing: Drawing,
    mpp: float | None,
    levels: Sequence[int] = (1, 4),
    style: Style = "aperio",
    compression: str = "jpeg",
) -> None:
    """Writes a tiled pyramid, tile by tile.

    Args:
      path: the file; OpenSlide needs the ending .svs or .tif.
      drawing: level 0. Each tile is drawn once for each level, in rows.
      mpp: micrometers per pixel of level 0; None leaves it out.
      levels: downsample of each level, powers of two up to 256. Remaining columns or rows are
        dropped, as scanners do: half of 4443 is 2221.
      style: "aperio", which OpenSlide opens with a power of 20; "generic", whose mpp is in the
        resolution tags; "ome", whose lower levels are SubIFDs.
      compression: "jpeg" (quality 85) or a lossless one such as "deflate".
    """
    pages = [
        (drawing.width // factor, drawing.height // factor, iterate_tiles(drawing, factor))
        for factor in levels
    ]
    _write_pages(path, pages, mpp, style, compression)


def write_arrays(
    path: Path,
    arrays: Sequence[np.ndarray],
    mpp: float | None,
    style: Style = "aperio",
    compression: str = "deflate",
) -> None:
    """Writes a pyramid from one (h, w, 3) uint8 array per level, of any sizes."""
    drawings = map(wrap_array, arrays)
    pages = [(drawing.width, drawing.height, iterate_tiles(drawing)) for drawing in drawings]
    _write_pages(path, pages, mpp, style, compression)


def wrap_array(array: np.ndarray) -> Drawing:
    """Makes a drawing of an (h, w, 3) uint8 array; beyond it tiles are white."""

    def draw_tile(x: int, y: int) -> np.ndarray:
        tile = np.full((TILE, TILE, 3), 255, np.uint8)
        part = array[y : y + TILE, x : x + TILE]
        tile[: part.shape[0], : part.shape[1]] = part
        return tile

    return Drawing(array.shape[1], array.shape[0], draw_tile)


def draw_section(width: int, height: int) -> Drawing:
    """Draws one oval section, grained like H&E, on glass; about 60 % is tissue.

    Tiles repeat, so that drawing costs less than compressing.
    """
    rng = np.random.default_rng(0)
    eosin, hematoxylin = np.array([[222, 160, 198], [96, 60, 132]], np.float32)
    grains = []
    for sigma in np.linspace(1.5, 4, 16):
        grain = cv2.GaussianBlur(rng.normal(size=(TILE, TILE)), (0, 0), sigma)
        share = np.clip(grain / grain.std() * 0.3 + 0.3, 0, 1)[..., None]
        grains.append((eosin * (1 - share) + hematoxylin * share).astype(np.uint8))
    glass = np.full((TILE, TILE, 3), 244, np.uint8)

    def draw_tile(x: int, y: int) -> np.ndarray:
        columns = (np.arange(x, x + TILE) / width - 0.5) / 0.45
        rows = (np.arange(y, y + TILE) / height - 0.5) / 0.42
        inside = columns**2 + rows[:, None] ** 2 < 1
        grain = grains[(x // TILE + 5 * (y // TILE)) % len(grains)]
        return grain if inside.all() else np.where(inside[..., None], grain, glass)

    return Drawing(width, height, draw_tile)


def draw_waves(width: int, height: int) -> np.ndarray:
    """Draws slow waves, different in each channel, that every filter keeps; (h, w, 3) uint8."""
    x, y = np.arange(width), np.arange(height)[:, None]
    waves = [np.sin(x / 60 + phase) * np.cos(y / 70 - phase) for phase in (0, 1, 2)]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def iterate_tiles(drawing: Drawing, factor: int = 1) -> Iterator[np.ndarray]:
    """Yields the tiles, row by row, of the level that is `factor` times smaller."""
    width, height, draw_tile = drawing
    part = TILE // factor
    for y in range(0, height // factor, TILE):
        for x in range(0, width // factor, TILE):
            tile = np.full((TILE, TILE, 3), 255, np.uint8)
            for top in range(0, TILE, part):
                for left in range(0, TILE, part):
                    corner = (x + left) * factor, (y + top) * factor
                    if corner[0] < width and corner[1] < height:
                        small = cv2.resize(
                            draw_tile(*corner), (part, part), interpolation=cv2.INTER_AREA
                        )
                        tile[top : top + part, left : left + part] = small
            yield tile


def _write_pages(
    path: Path,
    pages: Sequence[tuple[int, int, Iterator[np.ndarray]]],
    mpp: float | None,
    style: Style,
    compression: str,
) -> None:
    options = {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "photometric": "rgb",
        "compression": compression,
        "compressionargs": {"level": 85} if compression == "jpeg" else {},
        "maxworkers": 1,
        "metadata": None,
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=style == "ome") as writer:
        for index, (width, height, tiles) in enumerate(pages):
            chosen = dict(options)
            if style == "ome" and index == 0:
                chosen["metadata"] = {"axes": "YXS", **_ome_size(mpp)}
                chosen["subifds"] = len(pages) - 1
            elif index:
                chosen["subfiletype"] = 0 if style == "aperio" else 1
            if style == "aperio":
                field = "" if mpp is None else f"|MPP = {mpp:g}"
                chosen["description"] = (
                    f"Aperio Image Library v11.2.1\r\n{width}x{height} (256x256) JPEG/RGB Q=85"
                    f"|AppMag = 20{field}"
                )
            elif style == "generic" and mpp is not None and index == 0:
                chosen["resolution"] = (1e4 / mpp, 1e4 / mpp)
                chosen["resolutionunit"] = "CENTIMETER"
            writer.write(tiles, shape=(height, width, 3), **chosen)
            if style == "aperio" and index == 0:
                # The second directory of Aperio's files is a thumbnail in strips.
                thumbnail = np.full((48, 64, 3), 255, np.uint8)
                writer.write(thumbnail, photometric="rgb", rowsperstrip=16, metadata=None)


def _ome_size(mpp: float | None) -> dict[str, float | str]:
    if mpp is None:
        return {}
    return {f"PhysicalSize{axis}": mpp for axis in "XY"} | {
        f"PhysicalSize{axis}Unit": "µm" for axis in "XY"
    }
