"""A slide file as a library opens it, and the checks that every library's result has to pass."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsss_jax.errors import InputError

CONVERT = "convert it, e.g. with vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg"
_LONGEST = 2**21  # pixels: 75 mm of glass at 0.05 micrometers per pixel are 1.5 million
_DENSEST = 2**16  # pixels per byte; a table of empty tiles of 256 x 256 has 4,096
_ROUNDING = 2.0  # pixels that repeated halving may add to a level or drop from it


@dataclasses.dataclass(frozen=True)
class RawSlide:
    """A slide file as a library opens it.

    Attributes:
      sizes: (width, height) of each level, the largest first.
      read: (level, x, y, width, height) -> (height, width, 3) uint8 RGB. It is called only for
        regions inside the level, by several threads.
      close: frees the file.
      vendor: scanner or format.
      mpp: micrometers per pixel of both axes as the file states them, plausible or not.
      objective_power: magnification of the objective.
      bounds: (x, y, width, height) of the scanned area, in level-0 pixels.
      complete: False if tiles are missing, which OpenSlide fills from other levels.
      notes: sentences for the slide's warnings.
    """

    sizes: tuple[tuple[int, int], ...]
    read: Callable[[int, int, int, int, int], np.ndarray]
    close: Callable[[], None]
    vendor: str
    mpp: tuple[float, float] | None = None
    objective_power: float | None = None
    bounds: tuple[int, int, int, int] | None = None
    complete: bool = True
    notes: tuple[str, ...] = ()

    def add_notes(self, notes: Sequence[str]) -> "RawSlide":
        """Returns the slide with further notes, each once."""
        return dataclasses.replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))

    def select_levels(self, indices: Sequence[int], notes: Sequence[str]) -> "RawSlide":
        """Returns the slide with some of its levels, and notes on those that are left out."""
        if not notes:
            return self
        selected = dataclasses.replace(
            self,
            sizes=tuple(self.sizes[index] for index in indices),
            read=lambda level, *region: self.read(indices[level], *region),
        )
        return selected.add_notes(notes)


def check_size(path: Path, sizes: tuple[tuple[int, int], ...], file_bytes: int) -> None:
    """Refuses sizes that no slide has, before memory is allocated for them.

    Raises:
      InputError: a level without pixels, longer than a glass slide, or with far more pixels than
        the bytes of the file can hold.
    """
    for width, height in sizes:
        if min(width, height) < 1:
            raise InputError(f"{path}: an image of {width} x {height} pixels; copy the slide again")
        if max(width, height) > _LONGEST or width * height > _DENSEST * file_bytes:
            raise InputError(
                f"{path}: {width} x {height} pixels in {file_bytes:,} bytes, which no slide has; "
                "copy the slide again"
            )


def drop_other_images(raw: RawSlide) -> RawSlide:
    """Leaves out images that are not smaller versions of the largest one.

    Some files have a photo of the label or of the whole glass slide in the place of a level. Its
    shape differs: width and height are not smaller by the same factor. Other files have further
    focal planes there.
    """
    full, *others = raw.sizes
    indices, notes, planes = [0], [], 0
    for index, size in enumerate(others, start=1):
        if size == full:
            planes += 1
        elif is_level(full, size):
            indices.append(index)
        else:
            notes.append(describe_other_image(full, size))
    if planes:
        notes.append(f"it holds {planes + 1} images of its size; only the first is used")
    return raw.select_levels(indices, notes)


def is_level(full: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether both axes of an image are smaller by the same factor, but for rounding."""
    shortest = [long / (short + _ROUNDING) for long, short in zip(full, size, strict=True)]
    longest = [
        long / (short - _ROUNDING) if short > _ROUNDING else math.inf
        for long, short in zip(full, size, strict=True)
    ]
    return max(shortest) <= min(longest)


def describe_other_image(full: tuple[int, int], size: tuple[int, int]) -> str:
    """Returns the note on an image that is left out because it is not a level."""
    across, down = (long / short for long, short in zip(full, size, strict=True))
    return (
        f"an image of {size[0]} x {size[1]} pixels is no smaller version of the slide "
        f"({across:.3g} times across, {down:.3g} times down) and is left out"
    )


def parse_number(text: str | float | None) -> float | None:
    """Reads a finite number from a text; None if there is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def get_first_line(error: BaseException) -> str:
    """Returns the first line of an error, for messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
