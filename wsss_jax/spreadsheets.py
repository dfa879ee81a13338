"""CSV files whose text no spreadsheet takes for a formula, whatever it separates cells by."""

import csv
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

# What Excel, LibreOffice and Google Sheets begin a formula with, or skip before one (OWASP, "CSV
# injection"); also in the full width of East Asian type.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def text(value: str) -> str:
    """A cell of text such as a name, with ' before it where it would begin a formula.

    Numbers need none: they are written as they are.
    """
    return f"'{value}" if value.startswith(_FORMULA) else value


def write(file: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows of cells with commas between them.

    Where a cell has what other programs separate cells by, all of its row are quoted.

    Args:
      file: opened with `newline=""`.
      rows: cells as `text` returns, numbers, or None for an empty one.
    """
    usual, quoted = csv.writer(file), csv.writer(file, quoting=csv.QUOTE_ALL)
    for row in rows:
        others = any(isinstance(cell, str) and {";", "\t"} & set(cell) for cell in row)
        (quoted if others else usual).writerow(row)
