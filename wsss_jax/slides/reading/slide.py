"""Whole slides: one interface to the levels, pixels and metadata of any format."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.slides.reading.cache import make_white
from wsss_jax.slides.reading.formats import open_file
from wsss_jax.slides.reading.mpp import PLAUSIBLE_MPP, is_plausible
from wsss_jax.slides.reading.raw_slide import RawSlide, get_first_line

_SQUARE = 0.01  # metadata is rounded: pixel sides that differ by this share count as equal
_OTHER_MPP = 0.1  # share by which the user's mpp may differ from the metadata's without a warning


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
      name: file name without the ending.
      levels: the pyramid; level 0 is the largest.
      mpp_xy: micrometers per level-0 pixel, across and down, the caller's if given, or None if
        unknown; geometry is computed with it.
      metadata_mpp: the mpp of the metadata, or None if there is no plausible one.
      objective_power: magnification of the objective, or None. It gives no mpp: see `check_mpp`.
      vendor: scanner or format, such as "aperio", "generic-tiff", "ome-tiff", "dicom", "picture".
      bounds: (x, y, width, height) of the scanned area, in level-0 pixels; else the whole slide.
      warnings: sentences on its metadata.
      raw: the open file.
    """

    path: Path
    name: str
    levels: tuple[Level, ...]
    mpp_xy: tuple[float, float] | None
    metadata_mpp: float | None
    objective_power: float | None
    vendor: str
    bounds: tuple[int, int, int, int]
    warnings: tuple[str, ...]
    raw: RawSlide = dataclasses.field(repr=False)

    @property
    def mpp(self) -> float | None:
        """`mpp_xy` as one number: the side of a square of the same area."""
        return self.mpp_xy and _average_mpp(self.mpp_xy)

    @property
    def width(self) -> int:
        """Columns of level 0."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Rows of level 0."""
        return self.levels[0].height

    @property
    def is_scanned_in_part(self) -> bool:
        """Whether the scanned area is less than the slide."""
        return self.bounds != (0, 0, self.width, self.height)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Reads a region in the pixels of `level`; several threads may call it at once.

        Returns:
          (height, width, 3) uint8 RGB, white where there is no image.

        Raises:
          InputError: the file cannot be decoded there.
        """
        size = self.levels[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, size.width), min(y + height, size.height)
        if left >= right or top >= bottom:
            return make_white(height, width)
        try:
            inside = self.raw.read(level, left, top, right - left, bottom - top)
        except MemoryError:
            raise
        except Exception as error:  # the libraries raise every kind on damaged files
            raise InputError(
                f"{self.path}: cannot be decoded at x {left}, y {top} of level {level} "
                f"({get_first_line(error)}); copy the slide again, or leave it out"
            ) from error
        if inside.shape[:2] == (height, width):
            return inside
        image = make_white(height, width)
        image[top - y : bottom - y, left - x : right - x] = inside
        return image

    def close(self) -> None:
        """Closes the file; nothing can be read afterwards."""
        self.raw.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Opens a slide of any format that the libraries know.

    A slide without micrometers per pixel opens, too; see `check_mpp`.

    Args:
      path: a slide, a PNG or JPEG, or a folder with the .dcm files of one slide.
      mpp: micrometers per level-0 pixel; overrides the metadata.

    Raises:
      InputError: `mpp` is not plausible; or there is no such file, or it cannot be read, is empty,
        damaged, not an image, too large to be read without tiles, or needs a package that is not
        installed.
    """
    path = Path(path)
    if mpp is not None and not is_plausible(mpp):
        least, most = PLAUSIBLE_MPP
        raise InputError(
            f"{path}: {mpp:g} micrometers per pixel given for its level 0; "
            f"set --config.slide_mpp between {least:g} and {most:g}"
        )
    raw = open_file(path)
    (width, height), power = raw.sizes[0], raw.objective_power
    metadata, notes = _check_metadata(raw.mpp, mpp)
    return Slide(
        path=path,
        name=path.name if path.is_dir() else path.stem,
        levels=tuple(Level(*size, _compute_downsample(raw.sizes[0], size)) for size in raw.sizes),
        mpp_xy=metadata if mpp is None else (mpp, mpp),
        metadata_mpp=metadata and _average_mpp(metadata),
        objective_power=power if (power or 0) > 0 else None,
        vendor=raw.vendor,
        bounds=_clip_bounds(raw.bounds, width, height),
        warnings=(*raw.notes, *notes),
        raw=raw,
    )


def _check_metadata(
    metadata: tuple[float, float] | None, mpp: float | None
) -> tuple[tuple[float, float] | None, list[str]]:
    """Checks the mpp of the metadata, across and down, against plausibility and the user's `mpp`.

    Returns:
      the mpp of the metadata, equal in both axes if it is nearly so, or None; and warnings.
    """
    if metadata is None:
        return None, ["no micrometers per pixel in its metadata"] if mpp is None else []
    for value in metadata:
        if not is_plausible(value):
            return None, [f"its metadata says {value:g} micrometers per pixel, which is absurd"]
    if not _is_square(metadata):
        size = "{:g} x {:g}".format(*metadata)
        used = "each axis is resampled by its own" if mpp is None else f"{mpp:g} is used for both"
        note = f"its pixels are not square ({size} micrometers by its metadata); {used}"
        return metadata, [note]
    mean, notes = _average_mpp(metadata), []
    if mpp is not None and abs(mpp / mean - 1) > _OTHER_MPP:
        notes = [
            f"its metadata says {mean:g} micrometers per pixel, not the {mpp:g} that were set; "
            f"{mpp:g} is used"
        ]
    return (mean, mean), notes


def _is_square(mpp_xy: tuple[float, float]) -> bool:
    return abs(mpp_xy[0] / mpp_xy[1] - 1) <= _SQUARE


def _average_mpp(mpp_xy: tuple[float, float]) -> float:
    """Returns one mpp for both axes; of pixels that are not square, by their area."""
    across, down = mpp_xy
    return (across + down) / 2 if _is_square(mpp_xy) else math.sqrt(across * down)


def _clip_bounds(
    bounds: tuple[int, int, int, int] | None, width: int, height: int
) -> tuple[int, int, int, int]:
    """Clips `bounds` to the slide; returns the whole slide if nothing is left."""
    x, y, wide, tall = bounds or (0, 0, width, height)
    left, top = max(x, 0), max(y, 0)
    wide, tall = min(x + wide, width) - left, min(y + tall, height) - top
    return (left, top, wide, tall) if min(wide, tall) > 0 else (0, 0, width, height)


def _compute_downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Computes level-0 pixels per pixel of a level of `size`.

    Halving 4443 columns leaves 2221, yet each stands for exactly two: the factor is the whole
    number that explains both sizes but for a remainder, else the mean of both ratios.
    """
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = max(1, round(ratio))
    if all(abs(long / whole - short) < 1 for long, short in zip(full, size, strict=True)):
        return float(whole)
    return ratio


def check_mpp(slide: Slide) -> tuple[float, float]:
    """Returns the slide's micrometers per level-0 pixel, across and down.

    They are never guessed from the objective: 20x is 0.5 on one scanner, 0.46 or 0.325 on others.

    Raises:
      InputError: neither the file nor the user gives them.
    """
    if slide.mpp_xy is not None:
        return slide.mpp_xy
    raise InputError(
        f"{slide.path}: {'; '.join(slide.warnings)}: set --config.slide_mpp=0.25 (level 0) or give "
        "a CSV slide,mpp with --config.mpp_table"
    )
