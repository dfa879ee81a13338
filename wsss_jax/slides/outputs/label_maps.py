"""Reads the label map of a finished slide again, in bands of rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import results
from wsss_jax.slides.outputs.pyramid import TILE
from wsss_jax.slides.outputs.regions import ReadRows
from wsss_jax.slides.outputs.result_files import LABEL_MAP
from wsss_jax.slides.outputs.tiled_pyramid import TiledPyramid, describe_damage, open_pyramid


class LabelMap(NamedTuple):
    """The label map of a slide, open.

    Attributes:
      read_rows: reads it; see `regions.ReadRows`.
      frame: where it lies on the slide.
      legend: of the classes.
    """

    read_rows: ReadRows
    frame: MapFrame
    legend: Legend


def read_frame(folder: Path) -> tuple[MapFrame, Legend]:
    """Reads from the summary of a finished slide where its map lies, and what its values mean.

    Raises:
      InputError: the folder is not finished, or was by an earlier version.
    """
    summary = results.read_summary(folder)
    if summary is None:
        raise InputError(f"{folder}: no finished map of a slide; run the job 'segment' to its end")
    settings = summary["settings"]
    try:
        width, height = summary["size"]
        mpp, mpp_xy = settings["map"]["mpp"], settings["map"]["slide_mpp"]
        frame = MapFrame(
            width=width,
            height=height,
            mpp=mpp,
            scale=(mpp / mpp_xy[0], mpp / mpp_xy[1]),
            slide_size=tuple(summary["levels"][0]),
            origin=tuple(summary["bounds"][:2]),
        )
        names, colors = settings["output"]["classes"], settings["output"]["palette"]
        return frame, Legend(names, [tuple(color) for color in colors])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{folder / results.SUMMARY}: of an earlier version ({error}); run the job 'segment' "
            "again"
        ) from error


@contextmanager
def open_label_map(folder: Path) -> Iterator[LabelMap]:
    """Opens the label map in a folder of results.

    Raises:
      InputError: the folder is not finished, or the map is damaged.
    """
    frame, legend = read_frame(folder)
    path = folder / LABEL_MAP
    with open_pyramid(path) as pyramid:
        if pyramid.sizes[0] != frame[:2] or pyramid.channels != 1:
            raise describe_damage(path, f"{pyramid.sizes[0]}, not {frame[:2]} pixels")
        yield LabelMap(_make_reader(pyramid), frame, legend)


def _make_reader(pyramid: TiledPyramid) -> ReadRows:
    width, _ = pyramid.sizes[0]
    across = -(-width // TILE)

    @lru_cache(maxsize=2)
    def read_band(row: int) -> np.ndarray:
        """Reads a row of tiles."""
        tiles = [pyramid.read_tile(0, 0, row, column) for column in range(across)]
        return np.hstack(tiles)[:, :width]

    def read_rows(y0: int, y1: int, step: int) -> np.ndarray:
        rows = range(y0, y1, step)
        pixels = np.empty((len(rows), -(-width // step)), np.uint8)
        for row in range(y0 // TILE, -(-y1 // TILE)):
            inside = [i for i, y in enumerate(rows) if y // TILE == row]
            if inside:
                first = rows[inside[0]] - row * TILE
                band = read_band(row)[first::step, ::step]
                pixels[inside[0] : inside[-1] + 1] = band[: len(inside)]
        return pixels

    return read_rows
