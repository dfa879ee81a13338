"""Writes the page of a map with its tiles as files, which need no server."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import UNFINISHED, atomic_path, clear_unfinished
from wsss_jax.progress import show_progress
from wsss_jax.report.pages import make_data_url
from wsss_jax.slides.viewing import page_state, pictures
from wsss_jax.slides.viewing.collection import SlideMap
from wsss_jax.slides.viewing.grid import Box, TileGrid
from wsss_jax.slides.viewing.map_layers import CLASSES, OUTLINES

PAGE = "view.html"
_MARK = "copy.json"  # what the tiles were made of: others are not mixed with them
_OVERVIEW = 2048  # pixels, longer side of the map that says what is under the pointer


class _Tile(NamedTuple):
    """A tile to be written."""

    layer: str
    level: int
    column: int
    row: int


def write_tiles(
    opened: SlideMap,
    folder: Path,
    finest: float,
    draw: Callable[[SlideMap, str, int, int, int], bytes],
) -> dict[str, Any]:
    """Writes the tiles of a copy, and the pictures of its places; those that are there stay.

    Args:
      opened: the map.
      folder: for the copy; created if missing.
      finest: micrometers per pixel of the finest tiles of tissue; 0 = those of the slide.
      draw: makes a tile: (map, layer, level, column, row) -> content.

    Returns:
      the state of its page.

    Raises:
      InputError: the folder holds something else, or a file of the map is damaged.
    """
    if opened.tissue is None:
        raise InputError(opened.problem)
    state = page_state.describe_map(opened)
    mark = {"map": opened.summary["settings"]["map"], "finest": finest}
    _check_folder(folder, json.loads(json.dumps(mark)))
    clear_unfinished(folder)
    state["missing"] = ""
    state["overview"] = _make_overview(opened)
    layers = [name for name in state["layers"] if name in (CLASSES, OUTLINES)]
    state["layers"] = {name: state["layers"][name] for name in layers}
    tiles = []
    for name in (page_state.TISSUE, *layers):
        described = state["tissue"] if name == page_state.TISSUE else state["layers"][name]
        grid = opened.tissue.grid if name == page_state.TISSUE else opened.layers.get_grid(name)
        # Outlines are not drawn finer than the map has pixels.
        limit = max(finest, opened.frame.mpp) if name == OUTLINES else finest
        last = _find_last(grid, described["mpp"], limit)
        cut = 2 ** (grid.last - last)
        described |= {
            "last": last,
            "size": [side // cut for side in described["size"]],
            "mpp": described["mpp"] * cut,
        }
        tiles += list(_list_tiles(name, grid, last))
    with show_progress(total=len(tiles), desc=opened.summary["name"], unit="tile") as line:
        for tile in tiles:
            ending = "jpg" if tile.layer == page_state.TISSUE else "png"
            path = folder / "tiles" / tile.layer / str(tile.level)
            _write(path / f"{tile.column}_{tile.row}.{ending}", partial(draw, opened, *tile))
            line.update()
    for number, place in enumerate(state["places"]):
        draw_place = partial(pictures.draw_place, opened.tissue, place["box"])
        _write(folder / "places" / f"{number}.jpg", draw_place)
    return state


def _check_folder(folder: Path, mark: dict[str, Any]) -> None:
    """Takes a folder for a copy.

    Raises:
      InputError: it holds other files, or the copy of another map.
    """
    path = folder / _MARK
    if path.is_file():
        try:
            before = json.loads(path.read_bytes())
        except ValueError:
            before = None
        if before != mark:
            raise InputError(
                f"{folder} has a copy of another map, or at another resolution: remove it, or name "
                "another --config.export"
            )
        return
    if folder.exists() and not all(each.name.startswith(UNFINISHED) for each in folder.iterdir()):
        raise InputError(f"{folder} is not empty: name another --config.export")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")


def _find_last(grid: TileGrid, mpp: float, finest: float) -> int:
    """Finds the finest level that is no finer than asked for."""
    last = grid.last
    while last > 0 and mpp * grid.get_step(last) < finest * 0.99:
        last -= 1
    return last


def _list_tiles(layer: str, grid: TileGrid, last: int) -> Iterator[_Tile]:
    for level in range(last + 1):
        for column, row in grid.list_tiles(level):
            yield _Tile(layer, level, column, row)


def _write(path: Path, make: Callable[[], bytes]) -> None:
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_bytes(make())


def _make_overview(opened: SlideMap) -> dict[str, Any]:
    """Makes a small map in the page itself: browsers keep pages from reading files beside them."""
    grid = opened.layers.get_grid(CLASSES)
    level = grid.last
    while level > 0 and max(grid.padded) // grid.get_step(level) > _OVERVIEW:
        level -= 1
    step = grid.get_step(level)
    width, height = (side // step for side in grid.padded)
    labels: np.ndarray = opened.layers.read(CLASSES, level, Box(0, 0, width, height))
    return {
        "step": [scale * step for scale in opened.frame.scale],  # level-0 pixels
        "picture": make_data_url("image/png", pictures.encode_gray(labels)),
    }


def copy_report(source: Path, folder: Path, style: bytes) -> None:
    """Copies the report of a slide, with links to the page beside it."""
    content = source.read_bytes().replace(b"</head>", style + b"</head>", 1)
    with atomic_path(folder / source.name) as temporary:
        temporary.write_bytes(content)


def copy_files(files: dict[str, Path], folder: Path) -> None:
    """Copies what the page is made with."""
    for name, path in files.items():
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(path, temporary)
