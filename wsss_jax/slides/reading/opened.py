"""What any library makes of a slide file, and what is checked whichever library it was."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsss_jax.errors import InputError

CONVERT = "convert it, e.g. with vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg"
_LONGEST = 2**21  # pixels: a glass of 75 mm at 0.05 micrometers per pixel has 1.5 million
_DENSEST = 2**16  # pixels per byte; a table of empty tiles of 256 x 256 has 4,096
_ROUNDING = 2.0  # pixels of a level that halving again and again may add or drop


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a library makes of a file.

    `sizes` are (width, height) of each level, the largest first. `read(level, x, y, width, height)`
    is only called for regions inside the level, by several threads. `mpp` is what the file says of
    both axes, plausible or not. A pyramid is not `complete` if tiles were left out of it, which
    OpenSlide fills from other levels. `notes` are sentences on what is odd, for the slide's
    warnings.
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


def check_size(path: Path, sizes: tuple[tuple[int, int], ...], file_bytes: int) -> None:
    """Refuses sizes that no slide has, before anything is allocated for them.

    Raises:
      InputError: a level without pixels, longer than any glass, or of far more pixels than so few
        bytes can hold.
    """
    for width, height in sizes:
        if min(width, height) < 1:
            raise InputError(f"{path}: an image of {width} x {height} pixels; copy the slide again")
        if max(width, height) > _LONGEST or width * height > _DENSEST * file_bytes:
            raise InputError(
                f"{path}: {width} x {height} pixels in {file_bytes:,} bytes, which no slide has; "
                "copy the slide again"
            )


def keep_levels(opened: Opened) -> Opened:
    """The slide without images that are no smaller versions of its largest one.

    Some files have a photo of the label or of the whole glass where a level is expected. It is of
    another shape: its width and its height are not smaller by the same factor. Others have further
    planes of focus there.
    """
    full, *others = opened.sizes
    kept, notes, planes = [0], [], 0
    for index, size in enumerate(others, start=1):
        if size == full:
            planes += 1
        elif is_level(full, size):
            kept.append(index)
        else:
            notes.append(strange_level(full, size))
    if planes:
        notes.append(f"it holds {planes + 1} images of its size; only the first is used")
    return with_levels(opened, kept, notes)


def with_levels(opened: Opened, kept: Sequence[int], notes: Sequence[str]) -> Opened:
    """The slide with some of its levels, and notes on those that are left out."""
    if not notes:
        return opened
    return dataclasses.replace(
        opened,
        sizes=tuple(opened.sizes[index] for index in kept),
        read=lambda level, *region: opened.read(kept[level], *region),
        notes=tuple(dict.fromkeys((*opened.notes, *notes))),
    )


def is_level(full: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one factor explains both sides of an image, but for rounding."""
    shortest = [long / (short + _ROUNDING) for long, short in zip(full, size, strict=True)]
    longest = [
        long / (short - _ROUNDING) if short > _ROUNDING else math.inf
        for long, short in zip(full, size, strict=True)
    ]
    return max(shortest) <= min(longest)


def strange_level(full: tuple[int, int], size: tuple[int, int]) -> str:
    """The note on an image that is left out as it is no level."""
    across, down = (long / short for long, short in zip(full, size, strict=True))
    return (
        f"an image of {size[0]} x {size[1]} pixels is no smaller version of the slide "
        f"({across:.3g} times across, {down:.3g} times down) and is left out"
    )


def number(text: str | float | None) -> float | None:
    """What a text says as a finite number; None if it says none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def one_line(error: BaseException) -> str:
    """The first line of an error, for messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
