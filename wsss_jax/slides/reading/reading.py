"""Whole slides: one interface to any of them, and reading at the working resolution."""

import csv
import dataclasses
import functools
import math
from pathlib import Path
from types import TracebackType

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading import resampling
from wsss_jax.slides.reading.blocks import Cache, paste, white
from wsss_jax.slides.reading.formats import open_file
from wsss_jax.slides.reading.opened import Opened, number, one_line

_PLAUSIBLE_MPP = (0.05, 20.0)
_BLOCK = 1024  # working pixels: 3 MB, and whole tiles of 256 and 512 where nothing is resampled
_SOURCE = 4096  # a block never needs more level pixels than about the square of this
_BLOCK_BYTES = 128 << 20  # two rows of blocks of a strip of 8192 columns, twice
_SQUARE = 0.01  # metadata is rounded: sides of pixels that differ by this share are alike
_SLACK = 1.01  # metadata is rounded: a level this much coarser than asked for still serves


@dataclasses.dataclass(frozen=True)
class Level:
    """One image of a slide's pyramid: its size in pixels, and level-0 pixels per pixel of it."""

    width: int
    height: int
    downsample: float


@dataclasses.dataclass(frozen=True)
class Slide:
    """An open slide; a context manager that closes it.

    Attributes:
      path: the file, or the folder of a DICOM slide.
      name: its name without the ending.
      levels: the pyramid; level 0 is the largest.
      mpp: micrometers per level-0 pixel, the caller's if given, or None if nobody knows. Of pixels
        that are not square it is the side of a square of their area.
      mpp_xy: likewise, across and down; what geometry is computed with.
      metadata_mpp: what the file says, or None if it says nothing plausible.
      objective_power: magnification of the objective, or None. It is no mpp: see `check_mpp`.
      vendor: scanner or format, such as "aperio", "generic-tiff", "ome-tiff", "dicom", "picture".
      bounds: (x, y, width, height) of what was scanned, in level-0 pixels; else the whole slide.
      warnings: what is odd about its metadata, one sentence each.
    """

    path: Path
    name: str
    levels: tuple[Level, ...]
    mpp: float | None
    mpp_xy: tuple[float, float] | None
    metadata_mpp: float | None
    objective_power: float | None
    vendor: str
    bounds: tuple[int, int, int, int]
    warnings: tuple[str, ...]
    _opened: Opened = dataclasses.field(repr=False)

    @property
    def width(self) -> int:
        """Columns of level 0."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Rows of level 0."""
        return self.levels[0].height

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A region in the pixels of `level`; several threads may call it at once.

        Returns:
          (height, width, 3) uint8 RGB, white where there is no image.

        Raises:
          InputError: the file cannot be decoded there.
        """
        size = self.levels[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, size.width), min(y + height, size.height)
        if left >= right or top >= bottom:
            return white(height, width)
        try:
            found = self._opened.read(level, left, top, right - left, bottom - top)
        except MemoryError:
            raise
        except Exception as error:  # the libraries raise of every kind on damaged files
            raise InputError(
                f"{self.path}: cannot be decoded at x {left}, y {top} of level {level} "
                f"({one_line(error)}); copy the slide again, or leave it out"
            ) from error
        if found.shape[:2] == (height, width):
            return found
        image = white(height, width)
        image[top - y : bottom - y, left - x : right - x] = found
        return image

    def close(self) -> None:
        """Frees the file; nothing can be read afterwards."""
        self._opened.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Opens a slide of any format that the libraries know.

    A slide without micrometers per pixel opens all the same; see `check_mpp`.

    Args:
      path: a slide, a PNG or JPEG, or a folder with the .dcm files of one slide.
      mpp: micrometers per level-0 pixel; wins over what the file says.

    Raises:
      InputError: `mpp` is absurd; no such file, one that cannot be read, is empty, damaged, no
        image, too large to be read without tiles, or needs a package that is not installed.
    """
    path = Path(path)
    if mpp is not None and not _plausible(mpp):
        least, most = _PLAUSIBLE_MPP
        raise InputError(
            f"{path}: {mpp:g} micrometers per pixel given for its level 0; "
            f"set --config.slide_mpp between {least:g} and {most:g}"
        )
    opened = open_file(path)
    (width, height), metadata = opened.sizes[0], opened.mpp
    notes = list(opened.notes)
    if metadata is not None and not all(map(_plausible, metadata)):
        absurd = next(value for value in metadata if not _plausible(value))
        notes.append(f"its metadata says {absurd:g} micrometers per pixel, which is absurd")
        metadata = None
    elif metadata is None and mpp is None:
        notes.append("no micrometers per pixel in its metadata")
    metadata_mpp = None
    if metadata is not None and abs(metadata[0] / metadata[1] - 1) > _SQUARE:
        metadata_mpp = math.sqrt(metadata[0] * metadata[1])
        size = "{:g} x {:g}".format(*metadata)
        used = "each axis is resampled by its own" if mpp is None else f"{mpp:g} is used for both"
        notes.append(f"its pixels are not square ({size} micrometers by its metadata); {used}")
    elif metadata is not None:
        metadata_mpp = sum(metadata) / 2
        metadata = metadata_mpp, metadata_mpp
        if mpp is not None and abs(mpp / metadata_mpp - 1) > 0.1:
            notes.append(
                f"its metadata says {metadata_mpp:g} micrometers per pixel, not the {mpp:g} that "
                f"were set; {mpp:g} is used"
            )
    return Slide(
        path=path,
        name=path.name if path.is_dir() else path.stem,
        levels=tuple(Level(*size, _downsample(opened.sizes[0], size)) for size in opened.sizes),
        mpp=metadata_mpp if mpp is None else mpp,
        mpp_xy=metadata if mpp is None else (mpp, mpp),
        metadata_mpp=metadata_mpp,
        objective_power=opened.objective_power if (opened.objective_power or 0) > 0 else None,
        vendor=opened.vendor,
        bounds=_inside(opened.bounds, width, height),
        warnings=tuple(notes),
        _opened=opened,
    )


def _inside(
    bounds: tuple[int, int, int, int] | None, width: int, height: int
) -> tuple[int, int, int, int]:
    """What of `bounds` is on the slide; the whole slide if nothing is."""
    x, y, wide, tall = bounds or (0, 0, width, height)
    left, top = max(x, 0), max(y, 0)
    wide, tall = min(x + wide, width) - left, min(y + tall, height) - top
    return (left, top, wide, tall) if min(wide, tall) > 0 else (0, 0, width, height)


def check_mpp(slide: Slide) -> float:
    """The slide's micrometers per level-0 pixel.

    Never guessed from the objective: 20x is 0.5 with one scanner, 0.46 or 0.325 with others.

    Raises:
      InputError: neither the file nor the user says.
    """
    if slide.mpp is not None:
        return slide.mpp
    raise InputError(
        f"{slide.path}: {'; '.join(slide.warnings)}: set --config.slide_mpp=0.25 (level 0) or give "
        "a CSV slide,mpp with --config.mpp_table"
    )


def mpp_table(path: Path) -> dict[str, float]:
    """Micrometers per level-0 pixel by slide, from a CSV file with the header slide,mpp.

    Args:
      path: the file; a slide is given by its file name, with or without the ending.

    Raises:
      InputError: no such file or not such a table, a slide twice, or an absurd number.
    """
    table: dict[str, float] = {}
    if Path(path).exists():
        check_regular(path)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            if [cell.strip() for cell in next(reader, [])] != ["slide", "mpp"]:
                raise InputError(f"{path}:1: the first line must be slide,mpp; write it so")
            for row in filter(None, reader):
                where = f"{path}:{reader.line_num}"
                name, mpp = row[0].strip(), number(row[1]) if len(row) == 2 else None
                if not name or mpp is None or not _plausible(mpp):
                    raise InputError(
                        f"{where}: {','.join(row)!r} is not a slide and its micrometers per pixel; "
                        "write a line like biopsy1.svs,0.25"
                    )
                if name in table:
                    raise InputError(f"{where}: {name!r} is given twice; keep one of the lines")
                table[name] = mpp
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a CSV file slide,mpp") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file ({error}); save it as UTF-8 text") from error
    return table


class View:
    """A slide at the working resolution.

    Working pixel (i, j) covers the rectangle of `scale` level-0 pixels whose upper left corner is
    (i * scale[0], j * scale[1]). Its value depends on nothing else: blocks of a fixed grid are
    resampled, each with a margin, kept, and regions cut from them. Several threads may read.

    Attributes:
      slide: what is read.
      mpp: micrometers per working pixel, which is square.
      scale: level-0 pixels per working pixel, across and down.
      width, height: size in working pixels.
      warning: one sentence if the slide is coarser than `mpp`, else "".
    """

    def __init__(self, slide: Slide, mpp: float, resample: resampling.Method = "area"):
        """Looks at `slide` at `mpp` micrometers per pixel.

        Raises:
          InputError: the slide's mpp is unknown, or over twice `mpp`.
        """
        check_mpp(slide)
        across, down = slide.mpp_xy
        self.slide, self.mpp, self.scale = slide, mpp, (mpp / across, mpp / down)
        self.warning, coarsest = "", max(across, down)
        if min(self.scale) < 0.5 / _SLACK:
            raise InputError(
                f"{slide.path}: its {coarsest:g} micrometers per pixel are over twice the {mpp:g} "
                "that the networks were trained at; scan it finer, or train at a coarser resolution"
            )
        if min(self.scale) < 0.9:
            self.warning = (
                f"its {coarsest:g} micrometers per pixel are coarser than the {mpp:g} that the "
                "networks were trained at: it is enlarged, detail is missing"
            )
        self.width = max(1, round(slide.width / self.scale[0]))
        self.height = max(1, round(slide.height / self.scale[1]))
        self._resample: resampling.Method = resample
        self._grid = _grid(slide, self.scale, self.width, self.height, resample)
        self._blocks = Cache(_BLOCK_BYTES)

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A region in working pixels.

        Returns:
          (height, width, 3) uint8 RGB, white outside the slide.

        Raises:
          InputError: the file cannot be decoded there.
        """
        image = white(height, width)
        side = self._grid.side
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        for top in range(max(y, 0) // side * side, bottom, side):
            for left in range(max(x, 0) // side * side, right, side):
                make = functools.partial(_block, self.slide, self._grid, left, top)
                paste(image, x, y, self._blocks.get((left, top), make), left, top)
        return image

    def overview(self, longest: int) -> tuple[np.ndarray, float]:
        """The whole slide, small.

        A slide without lower levels is read from end to end for it, in blocks.

        Args:
          longest: pixels of the longer side, at most.

        Returns:
          (h, w, 3) uint8 RGB, and working pixels per pixel of it, at least 1.

        Raises:
          InputError: the file cannot be decoded.
        """
        factor = max(1.0, max(self.width, self.height) / longest)
        width, height = (max(1, round(size / factor)) for size in (self.width, self.height))
        scale = self.scale[0] * factor, self.scale[1] * factor
        grid = _grid(self.slide, scale, width, height, self._resample)
        image = white(height, width)
        for top in range(0, height, grid.side):
            for left in range(0, width, grid.side):
                paste(image, 0, 0, _block(self.slide, grid, left, top), left, top)
        return image, factor


@dataclasses.dataclass(frozen=True)
class _Grid:
    """A level resampled in square blocks of `side` pixels.

    `ratio` is level pixels per pixel, across and down.
    """

    level: int
    ratio: tuple[float, float]
    width: int
    height: int
    side: int
    resample: resampling.Method


def _grid(
    slide: Slide,
    scale: tuple[float, float],
    width: int,
    height: int,
    resample: resampling.Method,
) -> _Grid:
    least = min(scale) * _SLACK
    fine = [i for i, level in enumerate(slide.levels) if level.downsample <= least]
    level = max(fine, key=lambda i: slide.levels[i].downsample, default=0)
    # Below half a pixel of drift over the whole slide the nearest neighbor of every pixel is the
    # pixel itself. Resampling would shift by less than that and blur in bands.
    longest = max(width, height)
    across, down = (along / slide.levels[level].downsample for along in scale)
    ratio = tuple(1.0 if abs(r - 1) * longest < 0.5 else r for r in (across, down))
    side = _BLOCK
    while side > 1 and side * max(ratio) > _SOURCE:
        side //= 2
    return _Grid(level, ratio, width, height, side, resample)


def _block(slide: Slide, grid: _Grid, x: int, y: int) -> np.ndarray:
    """The block with the upper left corner (x, y), cropped to the grid's size; uint8 RGB."""
    width, height = min(grid.side, grid.width - x), min(grid.side, grid.height - y)
    level = slide.levels[grid.level]
    left, right, columns = _span(x, width, grid.ratio[0], level.width)
    top, bottom, rows = _span(y, height, grid.ratio[1], level.height)
    source = slide.read(grid.level, left, top, right - left, bottom - top)
    # Levels end up to a pixel of their own before the slide does; their border is repeated.
    missing = (max(0, math.ceil(rows[1]) - bottom), max(0, math.ceil(columns[1]) - right))
    if any(missing):
        source = np.pad(source, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    box = (columns[0] - left, rows[0] - top, columns[1] - left, rows[1] - top)
    return resampling.resize(source, box, width, height, grid.ratio, grid.resample)


def _span(start: int, length: int, ratio: float, size: int) -> tuple[int, int, tuple[float, float]]:
    """First and last (exclusive) level pixel to read along an axis, and the exact interval."""
    # The triangle filter reaches `ratio` level pixels beyond the box, one when enlarging.
    margin = 0 if ratio == 1 else math.ceil(max(ratio, 1.0)) + 1
    interval = (start * ratio, (start + length) * ratio)
    first = min(max(0, math.floor(interval[0]) - margin), size - 1)
    last = min(max(math.ceil(interval[1]) + margin, first + 1), size)
    return first, last, interval


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 pixels per pixel of a level of `size`.

    Halving 4443 columns leaves 2221, yet each stands for exactly two: a whole number that explains
    both sizes but for a rest is the factor, else it is the mean of both ratios.
    """
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = max(1, round(ratio))
    if all(abs(long / whole - short) < 1 for long, short in zip(full, size, strict=True)):
        return float(whole)
    return ratio


def _plausible(mpp: float) -> bool:
    return _PLAUSIBLE_MPP[0] <= mpp <= _PLAUSIBLE_MPP[1]
