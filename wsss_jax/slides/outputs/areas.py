"""Areas of the classes on a slide, counted pixel by pixel, and ratios of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax import spreadsheets
from wsss_jax.files import atomic_path
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.regions import ReadRows

BAND = 256  # rows read at a time
_SIX_DECIMALS = "{:.6f}"  # of areas, shares and ratios
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    # key of a row: (heading, how a value is written)
    "class": ("class", spreadsheets.escape_text),
    "pixels": ("pixels", str),
    "mm2": ("area (mm2)", _SIX_DECIMALS.format),
    "share_of_tissue": ("share of tissue", _SIX_DECIMALS.format),
    "share_of_slide": ("share of slide", _SIX_DECIMALS.format),
}


class AreaRatio(NamedTuple):
    """The area of some classes divided by that of others.

    Attributes:
      heading: of its column in tables.
      title, definition: in reports.
      numerator, denominator: roles of classes, see `data.dataset.ROLES`; () means all classes.
    """

    heading: str
    title: str
    definition: str
    numerator: tuple[str, ...]
    denominator: tuple[str, ...]


RATIOS = {
    "tumor_stroma_ratio": AreaRatio(
        heading="tumor-stroma ratio of the whole slide: stroma / (tumor + stroma)",
        title="Tumor-stroma ratio",
        definition="Stroma / (tumor + stroma), over the whole slide. Pathologists score a hot "
        "spot.",
        numerator=("stroma",),
        denominator=("tumor", "stroma"),
    ),
    "lymphocyte_area_fraction": AreaRatio(
        heading="lymphocyte area fraction (no sTIL score): lymphocytes / all classes",
        title="Lymphocyte area fraction",
        definition="Area of lymphocytes / area of all classes. This is not an sTIL score.",
        numerator=("lymphocytes",),
        denominator=(),
    ),
}


def count_pixels(read_rows: ReadRows, height: int, num_classes: int) -> np.ndarray:
    """Counts the pixels of each label value.

    Args:
      read_rows: reads the map.
      height: rows of the map.
      num_classes: C; the value C means excluded.

    Returns:
      (C + 1,) int64.
    """
    counts = np.zeros(num_classes + 1, np.int64)
    for y0 in range(0, height, BAND):
        labels = read_rows(y0, min(y0 + BAND, height), 1)
        # Not bincount, which first makes eight bytes of each pixel.
        counts += [np.count_nonzero(labels == value) for value in range(num_classes + 1)]
    return counts


def tabulate_areas(
    counts: np.ndarray, names: Sequence[str], frame: MapFrame, tissue_pixels: int
) -> list[dict[str, Any]]:
    """Makes the table of areas: a row for each class, then two for what belongs to no class.

    These are "excluded in tissue", such as white gaps, and "outside tissue". All rows together are
    the slide. Pixels of a class count as tissue.

    Args:
      counts: (C + 1,) pixels of each label value, from `count_pixels`.
      names: C class names.
      frame: of the map.
      tissue_pixels: pixels of the tissue mask.

    Returns:
      dicts of `class`, `pixels`, `mm2`, `share_of_tissue`, `share_of_slide` (0..1; None where
      there is no tissue, and for what is outside it).
    """
    slide_pixels = frame.width * frame.height
    pixels = dict(zip(names, counts[:-1].tolist(), strict=True))
    in_tissue = [*pixels.items(), ("excluded in tissue", tissue_pixels - sum(pixels.values()))]
    table = [
        {
            "class": name,
            "pixels": number,
            "mm2": number * frame.mpp**2 / 1e6,
            "share_of_tissue": _divide(number, tissue_pixels),
            "share_of_slide": _divide(number, slide_pixels),
        }
        for name, number in [*in_tissue, ("outside tissue", slide_pixels - tissue_pixels)]
    ]
    table[-1]["share_of_tissue"] = None
    return table


def sum_tissue(table: Sequence[Mapping[str, Any]]) -> float:
    """Sums up the tissue of a table from `tabulate_areas`, in square millimeters."""
    # What is outside tissue is no share of it.
    return sum(row["mm2"] for row in table if row["share_of_tissue"] is not None)


def compute_ratios(
    counts: np.ndarray, names: Sequence[str], roles: Mapping[str, str]
) -> dict[str, float | None]:
    """Computes the ratios of `list_ratios` over the pixels of the whole slide.

    Args:
      counts: (C + 1,) pixels of each label value, from `count_pixels`.
      names: C class names.
      roles: role ("tumor", "stroma", "lymphocytes") -> class name, the data set's `roles`.

    Returns:
      key of `RATIOS` -> 0..1, or None for 0 / 0.
    """
    pixels = dict(zip(names, counts[:-1].tolist(), strict=True))

    def sum_pixels(of_roles: tuple[str, ...]) -> int:
        return sum(pixels[roles[role]] for role in of_roles) if of_roles else sum(pixels.values())

    return {
        key: _divide(sum_pixels(RATIOS[key].numerator), sum_pixels(RATIOS[key].denominator))
        for key in list_ratios(roles)
    }


def list_ratios(roles: Mapping[str, str]) -> list[str]:
    """Lists the keys of those `RATIOS` for which a data set with these roles has the classes."""
    return [
        key
        for key, ratio in RATIOS.items()
        if {*ratio.numerator, *ratio.denominator} <= roles.keys()
    ]


def write_areas(path: Path | str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes areas as a table for spreadsheets, a line for each class, atomically.

    Each line starts with the slide. An undefined value is an empty cell.

    Args:
      path: of the CSV file.
      tables: name of a slide -> its table from `tabulate_areas`.
    """
    headings = [heading for heading, _ in COLUMNS.values()]
    lines = [
        [slide, *(_format_cell(row[key], form) for key, (_, form) in COLUMNS.items())]
        for slide, table in tables.items()
        for row in table
    ]
    write_csv(path, headings, lines)


def write_ratios(path: Path | str, ratios: Mapping[str, Mapping[str, float | None]]) -> None:
    """Writes ratios as a table for spreadsheets, a line for each slide, atomically.

    Args:
      path: of the CSV file.
      ratios: name of a slide -> its ratios from `compute_ratios`; cells of others are empty.
    """
    keys = [key for key in RATIOS if any(key in of_slide for of_slide in ratios.values())]
    lines = [
        [slide, *(_format_cell(of_slide.get(key), _SIX_DECIMALS.format) for key in keys)]
        for slide, of_slide in ratios.items()
    ]
    write_csv(path, [RATIOS[key].heading for key in keys], lines)


def write_csv(path: Path | str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Writes lines whose first cell is the name of a slide, atomically.

    Args:
      path: of the CSV file.
      headings: of the cells after the name.
      lines: of texts; all but the name are from `escape_text`, or numbers.
    """
    with (
        atomic_path(path) as temporary,
        # With a byte order mark, so that Excel reads names as UTF-8. Names of files may hold bytes
        # that are no text.
        temporary.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file,
    ):
        rows = ([spreadsheets.escape_text(slide), *cells] for slide, *cells in lines)
        spreadsheets.write_rows(file, [["slide", *headings], *rows])


def _format_cell(value: Any, form: Callable[[Any], str]) -> str:
    return "" if value is None else form(value)


def format_number(value: float | None) -> str:
    """Writes an area, share or ratio; an undefined one as an empty text."""
    return _format_cell(value, _SIX_DECIMALS.format)


def _divide(part: int, whole: int) -> float | None:
    return part / whole if whole else None
