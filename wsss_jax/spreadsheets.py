"""CSV files that spreadsheet programs read as data, never as formulas."""

import csv
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

# What Excel, LibreOffice and Google Sheets start a formula with, or skip before one (OWASP, "CSV
# injection"), also in the full-width forms of East Asian fonts.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def escape_text(value: str) -> str:
    """Puts ' before a text, such as a name, that would start a formula.

    Numbers are written as they are.
    """
    return f"'{value}" if value.startswith(_FORMULA) else value


def unescape_text(value: str) -> str:
    """Takes back what `escape_text` does."""
    return value[1:] if value.startswith("'") and value[1:].startswith(_FORMULA) else value


def write_rows(file: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows of cells with commas between them.

    A row is quoted where a text contains what some programs use as separator (semicolon or tab).

    Args:
      file: opened with `newline=""`.
      rows: texts from `escape_text`, numbers, or None for an empty cell.
    """
    usual, quoted = csv.writer(file), csv.writer(file, quoting=csv.QUOTE_ALL)
    for row in rows:
        separated = any(isinstance(cell, str) and {";", "\t"} & set(cell) for cell in row)
        (quoted if separated else usual).writerow(row)
