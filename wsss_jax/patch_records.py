"""Records of the patches of a run: names, labels and checksums, in `patches.json`.

A run continues only with the patches it started with, and deletes only files it made for them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

FILE = "patches.json"
_OWN_DIGITS = 8  # of a checksum: of the patch itself


class PatchRecord(NamedTuple):
    """One patch of a run.

    Attributes:
      name: its stem.
      label: such as "1 0 0 1", in the order of the classes; "" if it has masks instead.
      checksum: CRC-32 of its own files (image, then mask), as hexadecimal text, followed by those
        of what a run learns of it instead: each of its pseudo masks, or its clusters.
    """

    name: str
    label: str
    checksum: str


def save(records: Sequence[PatchRecord], workdir: Path) -> None:
    """Writes `patches.json` into the folder of a run, a line for each patch."""
    lines = ",\n".join(json.dumps(record) for record in records)
    with atomic_path(Path(workdir) / FILE) as path:
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load(workdir: Path) -> list[PatchRecord] | None:
    """Loads the records of a run; None if there are none, as in runs before version 0.2.

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
            f"{path}: damaged ({error}); choose another --workdir, or remove the file to continue "
            "without comparing the patches"
        ) from error
    return records


def parse_records(value: Any) -> list[PatchRecord]:
    """Makes records of a value from JSON; raises ValueError or TypeError for anything else."""
    if not isinstance(value, list):
        raise ValueError("not a list")
    records = [PatchRecord(*fields) for fields in value]
    if not all(isinstance(text, str) for record in records for text in record):
        raise ValueError("fields that are not text")
    return records


def find_difference(before: Sequence[PatchRecord], now: Sequence[PatchRecord]) -> str:
    """Returns the first difference between the earlier and the current patches; "" for none."""
    old = {record.name: record for record in before}
    new = {record.name: record for record in now}
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            return f"{name} is gone"
        if name not in old:
            return f"{name} is new"
        if old[name].label != new[name].label:
            return f"the label of {name} was {old[name].label} and is {new[name].label}"
        if old[name].checksum != new[name].checksum:
            return f"the content of {name} has changed"
    return ""


def find_relearned(before: Sequence[PatchRecord], now: Sequence[PatchRecord]) -> str:
    """Returns the first of the same patches whose masks or clusters have changed.

    It is "" where none has, and where the patches themselves are others.
    """
    if find_difference(*map(_drop_learned, (before, now))):
        return ""
    changed = set(before).symmetric_difference(now)
    return min((record.name for record in changed), default="")


def _drop_learned(records: Sequence[PatchRecord]) -> list[PatchRecord]:
    """Returns records with the checksums of the patches' own files only."""
    return [record._replace(checksum=record.checksum[:_OWN_DIGITS]) for record in records]
