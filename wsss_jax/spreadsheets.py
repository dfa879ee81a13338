"""CSV files that spreadsheet programs read as data, never as formulas."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular

# What Excel, LibreOffice and Google Sheets start a formula with, or skip before one (OWASP, "CSV
# injection"), also in the full-width forms of East Asian fonts.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def escape_text(value: str) -> str:
    """Puts ' before a text, such as a name, that would start a formula.

    Numbers are written as they are.
    """
    return f"'{value}" if value.startswith(_FORMULA) else value


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Reads a CSV file with a header, such as one that `write_rows` has written.

    Args:
      path: of the file, UTF-8 with or without a byte order mark.

    Returns:
      The columns; of each row the number of its line, and its texts by column, without what
      `escape_text` has put before them.

    Raises:
      InputError: no CSV file, or a row has another number of cells than the header.
    """
    check_regular(path)
    rows = []
    # Paths may hold bytes that are no text; they are read as they were written.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = list(reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}:{reader.line_num}: another number of cells than in the first "
                        "line; correct it"
                    )
                rows.append((reader.line_num, {c: _unescape(text) for c, text in row.items()}))
        except csv.Error as error:
            raise InputError(f"{path}: not a CSV file ({error}); save it as UTF-8 text") from error
    return columns, rows


def _unescape(text: str) -> str:
    return text[1:] if text.startswith("'") and escape_text(text[1:]) == text else text


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
