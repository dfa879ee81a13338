"""Which patches a run has used: their names, labels and contents, in `patches.json`.

A run goes on only with the patches it began with, and deletes only files that it made for them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

FILE = "patches.json"


class PatchRecord(NamedTuple):
    """One patch as a run has used it.

    Attributes:
      name: its stem.
      label: "1 0 0 1", in the order of the classes; "" where its masks say.
      checksum: CRC-32 of the bytes of its files (image, then masks), as hexadecimal text.
    """

    name: str
    label: str
    checksum: str


def save(records: Sequence[PatchRecord], workdir: Path) -> None:
    """Writes `patches.json` into a run's folder, a line for each patch."""
    lines = ",\n".join(json.dumps(record) for record in records)
    with atomic_path(Path(workdir) / FILE) as path:
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load(workdir: Path) -> list[PatchRecord] | None:
    """The records of a run; None where there are none, as in runs before version 0.2.

    Raises:
      InputError: the file is damaged.
    """
    path = Path(workdir) / FILE
    if not path.is_file():
        return None
    try:
        records = parse_records(json.loads(path.read_bytes()))
        if not records:
            raise ValueError("no records")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged ({error}); name another --workdir, or remove the file to go on "
            "without comparing the patches"
        ) from error
    return records


def parse_records(value: Any) -> list[PatchRecord]:
    """The records in what was read from JSON; raises ValueError or TypeError for anything else."""
    if not isinstance(value, list):
        raise ValueError("no list")
    records = [PatchRecord(*fields) for fields in value]
    if not all(isinstance(text, str) for record in records for text in record):
        raise ValueError("fields that are no texts")
    return records


def find_difference(before: Sequence[PatchRecord], now: Sequence[PatchRecord]) -> str:
    """The first difference between the patches of a run and those there are now; "" for none."""
    known = {record.name: record for record in before}
    found = {record.name: record for record in now}
    for name in sorted(known.keys() | found.keys()):
        if name not in found:
            return f"{name} is gone"
        if name not in known:
            return f"{name} is new"
        if known[name].label != found[name].label:
            return f"the label of {name} was {known[name].label} and is {found[name].label}"
        if known[name].checksum != found[name].checksum:
            return f"the content of {name} has changed"
    return ""
