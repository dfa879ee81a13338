"""Areas of the classes on a slide, counted pixel by pixel, and ratios of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss_jax import spreadsheets
from wsss_jax.files import atomic_path

BAND = 256  # rows asked for at a time
_SIX = "{:.6f}"  # decimals of areas, shares and ratios
COLUMNS = {
    # key of a row: (heading, how a value is written)
    "class": ("class", spreadsheets.text),
    "pixels": ("pixels", str),
    "mm2": ("area (mm2)", _SIX.format),
    "share_of_tissue": ("share of tissue", _SIX.format),
    "share_of_slide": ("share of slide", _SIX.format),
}
RATIOS = {
    # key: (what it is, classes above the line, classes below it as roles; () = all classes)
    "tumor_stroma_ratio": (
        "tumor-stroma ratio of the whole slide: stroma / (tumor + stroma)",
        ("stroma",),
        ("tumor", "stroma"),
    ),
    "lymphocyte_area_fraction": (
        "lymphocyte area fraction (no sTIL score): lymphocytes / all classes",
        ("lymphocytes",),
        (),
    ),
}


def count(read_rows: Callable[[int, int, int], np.ndarray], height: int, C: int) -> np.ndarray:
    """Counts the pixels of each label value.

    Args:
      read_rows: (y0, y1, step) -> (ceil((y1 - y0) / step), columns) uint8 of 0..C, the rows y0,
        y0 + step, ... below y1.
      height: rows of the map.
      C: number of classes; the value C means excluded.

    Returns:
      (C + 1,) int64.
    """
    counts = np.zeros(C + 1, np.int64)
    for y0 in range(0, height, BAND):
        labels = read_rows(y0, min(y0 + BAND, height), 1)
        # Not bincount, which makes eight bytes of each pixel first.
        counts += [np.count_nonzero(labels == value) for value in range(C + 1)]
    return counts


def rows(
    counts: np.ndarray,
    classes: Sequence[str],
    mpp: float,
    tissue_pixels: int,
    slide_pixels: int,
) -> list[dict[str, Any]]:
    """The table of areas: a row for each class, then what of the slide is in none.

    That is "excluded in tissue", such as white gaps, and "outside tissue"; all rows together are
    the slide. Pixels of a class are taken to be tissue.

    Args:
      counts: (C + 1,) pixels of each value, as `count` returns.
      classes: C names.
      mpp: micrometres per pixel of the map.
      tissue_pixels: pixels of the tissue mask.
      slide_pixels: all pixels.

    Returns:
      dicts of `class`, `pixels`, `mm2`, `share_of_tissue`, `share_of_slide` (0..1; None where
      there is no tissue, and for what is outside of it).
    """
    pixels = dict(zip(classes, counts[:-1].tolist(), strict=True))
    table = [*pixels.items(), ("excluded in tissue", tissue_pixels - sum(pixels.values()))]
    result = [
        {
            "class": name,
            "pixels": number,
            "mm2": number * mpp**2 / 1e6,
            "share_of_tissue": _ratio(number, tissue_pixels),
            "share_of_slide": _ratio(number, slide_pixels),
        }
        for name, number in [*table, ("outside tissue", slide_pixels - tissue_pixels)]
    ]
    result[-1]["share_of_tissue"] = None
    return result


def ratios(
    counts: np.ndarray, classes: Sequence[str], roles: Mapping[str, str]
) -> dict[str, float | None]:
    """The ratios of `RATIOS` whose classes the data set has, of pixels of the whole slide.

    Args:
      counts: (C + 1,) pixels of each value, as `count` returns.
      classes: C names.
      roles: role ("tumor", "stroma", "lymphocytes") -> class name, the data set's `roles`.

    Returns:
      key -> 0..1, or None for 0 / 0.
    """
    pixels = dict(zip(classes, counts[:-1].tolist(), strict=True))
    return {
        key: _ratio(
            sum(pixels[roles[role]] for role in above),
            sum(pixels[roles[role]] for role in below) if below else sum(pixels.values()),
        )
        for key, (_, above, below) in RATIOS.items()
        if key in ratio_names(roles)
    }


def ratio_names(roles: Mapping[str, str]) -> list[str]:
    """The keys of `RATIOS` whose classes a data set with these roles has."""
    return [key for key, (_, above, below) in RATIOS.items() if {*above, *below} <= roles.keys()]


def write_areas(path: Path | str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes the areas as a table for spreadsheets, a line for each class, atomically.

    Every line begins with the slide. What is undefined is an empty field.

    Args:
      path: the file.
      tables: slide -> table as `rows` returns.
    """
    headings = [heading for heading, _ in COLUMNS.values()]
    lines = [
        [spreadsheets.text(slide), *(_cell(row[key], text) for key, (_, text) in COLUMNS.items())]
        for slide, table in tables.items()
        for row in table
    ]
    _write_csv(path, headings, lines)


def write_ratios(path: Path | str, ratios: Mapping[str, Mapping[str, float | None]]) -> None:
    """Writes the ratios as a table for spreadsheets: a line for each slide, atomically.

    Args:
      path: the file.
      ratios: slide -> what `ratios` returns; those that a slide lacks are empty fields.
    """
    keys = [key for key in RATIOS if any(key in each for each in ratios.values())]
    lines = [
        [spreadsheets.text(slide), *(_cell(each.get(key), _SIX.format) for key in keys)]
        for slide, each in ratios.items()
    ]
    _write_csv(path, [RATIOS[key][0] for key in keys], lines)


def _write_csv(path: Path | str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    with (
        atomic_path(path) as temporary,
        # With a byte order mark, by which Excel knows that names are UTF-8.
        temporary.open("w", encoding="utf-8-sig", newline="") as file,
    ):
        spreadsheets.write(file, [["slide", *headings], *lines])


def _cell(value: Any, text: Callable[[Any], str]) -> str:
    return "" if value is None else text(value)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
