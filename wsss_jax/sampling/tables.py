"""The tables of a folder of patches: `patches.csv`, `slides.csv`, and the user's `keep.csv`.

They are for programs and spreadsheets alike: UTF-8 with a byte order mark, a header, and names that
would start a formula after an apostrophe, which the readers here take away again.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.splits import SPLITS
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.sampling.quality import MEASURES
from wsss_jax.spreadsheets import escape_text, read_rows, write_rows

PATCHES, SLIDES, KEEP = "patches.csv", "slides.csv", "keep.csv"
COLUMNS = (*MEASURES, "nearest", "sharpness_z", "stain_z")  # of measures
_DIGITS = 5  # of a measure


class PatchRow(NamedTuple):
    """A patch that was cut.

    Attributes:
      patch: path from the folder of `patches.csv`.
      slide, patient, split: what it was cut from; split is train, val or test.
      left, top: of its upper left corner, level-0 pixels.
      size0: its side in level-0 pixels across, which may be no whole number.
      mpp: micrometers per pixel of the patch.
      kept: whether it is to be labeled.
      reason: why it is dropped, or "kept by hand".
      measures: column -> value; nan where it is unknown.
    """

    patch: str
    slide: str
    patient: str
    split: str
    left: int
    top: int
    size0: float
    mpp: float
    kept: bool
    reason: str
    measures: Mapping[str, float]


class SlideRow(NamedTuple):
    """A slide that was sampled.

    Attributes:
      slide: its name, which its folders have, too.
      file: absolute path.
      patient, split: see `PatchRow`.
      mpp0, mpp0_down: micrometers per level-0 pixel, across and down; nan if it failed.
      patches, kept: numbers of patches.
      note: what is odd about the slide.
      error: why it failed, or "".
    """

    slide: str
    file: str
    patient: str
    split: str
    mpp0: float
    mpp0_down: float
    patches: int
    kept: int
    note: str
    error: str


_FIXED = PatchRow._fields[:-1]


def write_patches(path: Path, rows: Iterable[PatchRow]) -> None:
    """Writes `patches.csv`, atomically."""
    _write(
        path,
        (*_FIXED, *COLUMNS),
        ((*row[:-1], *(row.measures[name] for name in COLUMNS)) for row in rows),
    )


def read_patches(path: Path) -> list[PatchRow]:
    """Reads `patches.csv`.

    Raises:
      InputError: no such file, or not such a table.
    """
    types = _get_types(PatchRow) | dict.fromkeys(COLUMNS, float)
    del types["measures"]
    return [
        PatchRow(
            **{name: row[name] for name in _FIXED}, measures={name: row[name] for name in COLUMNS}
        )
        for row in _read(path, types)
    ]


def write_slides(path: Path, rows: Iterable[SlideRow]) -> None:
    """Writes `slides.csv`, atomically."""
    _write(path, SlideRow._fields, rows)


def read_slides(path: Path) -> list[SlideRow]:
    """Reads `slides.csv`.

    Raises:
      InputError: no such file, or not such a table.
    """
    rows = [SlideRow(**row) for row in _read(path, _get_types(SlideRow))]
    for row in rows:
        if row.split not in SPLITS:
            raise InputError(
                f"{path}: the split {row.split!r} of {row.slide}; write train, val or test"
            )
    return rows


def read_keep(path: Path) -> dict[str, bool]:
    """Reads which patches the user keeps or drops, whatever the measures say.

    Args:
      path: a CSV file with the header patch,keep: a patch is named by its file, with or without
        folder and ending; keep is 1 or 0. It need not exist.

    Returns:
      name without folder and ending -> keep.

    Raises:
      InputError: not such a table, or a patch that is to be kept and dropped.
    """
    keep: dict[str, bool] = {}
    if not path.exists():
        return keep
    for row in _read(path, {"patch": str, "keep": bool}):
        name = row["patch"].strip().rpartition("/")[2].removesuffix(".png")
        if keep.setdefault(name, row["keep"]) != row["keep"]:
            raise InputError(f"{path}: {name} is to be kept and dropped; keep one of the lines")
    return keep


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with (
        atomic_path(path) as temporary,
        # Paths may hold bytes that are no text; readers get the same bytes back.
        temporary.open("w", encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        write_rows(file, [header])
        write_rows(file, ([_format(cell) for cell in row] for row in rows))


def _format(cell: Any) -> Any:
    if isinstance(cell, bool):
        return int(cell)
    if isinstance(cell, float):
        return None if math.isnan(cell) else float(f"{cell:.{_DIGITS}g}")
    return escape_text(cell) if isinstance(cell, str) else cell


def _get_types(row: Any) -> dict[str, type]:
    return dict(row.__annotations__)


def _read(path: Path, types: Mapping[str, type]) -> Iterator[dict[str, Any]]:
    """Reads rows by column, as values of its type; other columns are ignored."""
    columns, rows = read_rows(path)
    if missing := [name for name in types if name not in columns]:
        raise InputError(
            f"{path}:1: the column {missing[0]} is missing; the first line must name "
            f"{','.join(types)}"
        )
    for line, row in rows:
        values = {}
        for name, kind in types.items():
            try:
                values[name] = _parse(row[name], kind)
            except ValueError as error:
                raise InputError(
                    f"{path}:{line}: {name} is {row[name]!r}; give {_WORDS[kind]}"
                ) from error
        yield values


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "1 or 0"}


def _parse(cell: str, kind: type) -> Any:
    """Reads a cell.

    Raises:
      ValueError: it is not of its type.
    """
    if kind is bool:
        return ("0", "1").index(cell.strip()) == 1
    if kind is float:
        return float(cell or "nan")
    return int(cell) if kind is int else cell
