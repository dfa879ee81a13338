"""Reads the label map of a finished slide again, in bands of rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from data.pictures import DAMAGE
from wsss_jax.errors import InputError
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import results
from wsss_jax.slides.outputs.pyramid import TILE
from wsss_jax.slides.outputs.regions import ReadRows
from wsss_jax.slides.outputs.result_files import LABEL_MAP


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


@contextmanager
def open_label_map(folder: Path) -> Iterator[LabelMap]:
    """Opens the label map in a folder of results.

    Raises:
      InputError: the folder is not finished, or the map is damaged.
    """
    summary = results.read_summary(folder)
    if summary is None:
        raise InputError(f"{folder}: no finished map of a slide; run the job 'segment' to its end")
    settings, path = summary["settings"], folder / LABEL_MAP
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
        legend = Legend(names, [tuple(color) for color in colors])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{folder / results.SUMMARY}: of an earlier version ({error}); run the job 'segment' "
            "again"
        ) from error
    try:
        file = tifffile.TiffFile(path)
    except (*DAMAGE, tifffile.TiffFileError) as error:
        raise _describe_damage(path, error) from error
    with file:
        page = file.pages[0]
        if page.shape != (height, width) or (page.tilelength, page.tilewidth) != (TILE, TILE):
            raise _describe_damage(path, f"{page.shape}, not {(height, width)} pixels")
        yield LabelMap(_make_reader(path, file, page), frame, legend)


def _make_reader(path: Path, file: tifffile.TiffFile, page: tifffile.TiffPage) -> ReadRows:
    width = page.shape[1]
    across = -(-width // TILE)

    @lru_cache(maxsize=2)
    def read_band(row: int) -> np.ndarray:
        """Reads a row of tiles."""
        band = np.zeros((TILE, across * TILE), np.uint8)
        for column in range(across):
            index = row * across + column
            try:
                file.filehandle.seek(page.dataoffsets[index])
                data = file.filehandle.read(page.databytecounts[index])
                pixels = page.decode(data, index)[0][0, :, :, 0]
            except (*DAMAGE, RuntimeError) as error:
                raise _describe_damage(path, error) from error
            left = column * TILE
            band[: len(pixels), left : left + pixels.shape[1]] = pixels
        return band[:, :width]

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


def _describe_damage(path: Path, problem: object) -> InputError:
    return InputError(f"{path}: missing or damaged ({problem}); run the job 'segment' again")
