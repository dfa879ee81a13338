"""Micrometers per pixel (mpp): which are plausible, and the table that gives them by slide."""

import csv
from pathlib import Path

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading.raw_slide import parse_number

PLAUSIBLE_MPP = (0.05, 20.0)  # of level 0


def is_plausible(mpp: float) -> bool:
    """Whether a slide can have so many micrometers per level-0 pixel."""
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def read_mpp_table(path: Path) -> dict[str, float]:
    """Reads micrometers per level-0 pixel by slide from a CSV file with the header slide,mpp.

    A slide is named by its file, with or without the ending, or by its folder of results.

    Raises:
      InputError: no such file, not such a table, a slide twice, or an mpp that is not plausible.
    """
    table: dict[str, float] = {}
    if path.exists():
        check_regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            if [cell.strip() for cell in next(reader, [])] != ["slide", "mpp"]:
                raise InputError(f"{path}:1: the first line is not the header; make it slide,mpp")
            for row in filter(None, reader):
                where = f"{path}:{reader.line_num}"
                name, mpp = row[0].strip(), parse_number(row[1]) if len(row) == 2 else None
                if not name or mpp is None or not is_plausible(mpp):
                    raise InputError(
                        f"{where}: {','.join(row)!r} is not a slide and its micrometers per pixel; "
                        "write a line like biopsy1.svs,0.25"
                    )
                if name in table:
                    raise InputError(f"{where}: {name!r} is given twice; keep one of the lines")
                table[name] = mpp
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; name a CSV file with the header slide,mpp"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file ({error}); save it as UTF-8 text") from error
    return table
