"""Patients: which slides are of one, and in which split it is. No patient is in two splits."""

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.patients import find_barcode
from data.splits import SPLITS
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading.catalog import SlideFile, normalize_name


class Patient(NamedTuple):
    """Whose a slide is; `split` is "" unless the user's table says it."""

    patient: str
    split: str = ""


def read_patients(path: Path) -> dict[str, Patient]:
    """Reads patients by slide from a CSV file with the columns slide and patient.

    Slides are named as in `mpp.read_mpp_table`. A column split (train, val or test) is optional,
    other columns are ignored.

    Raises:
      InputError: no such file, not such a table, a slide twice, or a patient in two splits.
    """
    check_regular(path)
    table: dict[str, Patient] = {}
    splits: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            if not {"slide", "patient"} <= set(columns):
                raise InputError(
                    f"{path}:1: the first line names no columns slide and patient; add them"
                )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                slide, patient, split = (
                    (row.get(name) or "").strip() for name in ("slide", "patient", "split")
                )
                if not slide or not patient:
                    raise InputError(f"{where}: no slide or no patient; give both")
                if split not in ("", *SPLITS):
                    raise InputError(f"{where}: the split {split!r}; write train, val or test")
                if slide in table:
                    raise InputError(f"{where}: {slide!r} is given twice; keep one of the lines")
                if splits.setdefault(patient, split) != split:
                    raise InputError(
                        f"{where}: the patient {patient!r} is in {split or 'no split'} here and in "
                        f"{splits[patient] or 'no split'} before; give all slides of a patient one"
                    )
                table[slide] = Patient(patient, split)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file ({error}); save it as UTF-8 text") from error
    return table


def find_patients(
    slides: Sequence[SlideFile], table: Mapping[str, Patient] | None
) -> dict[str, Patient]:
    """Finds the patient of each slide, by the slide's name.

    It is that of the user's table if there is one; else the participant in a TCGA barcode, else the
    slide itself.

    Raises:
      InputError: the table lacks a slide, or a line of it could be several slides.
    """
    lines = {normalize_name(key): patient for key, patient in (table or {}).items()}
    owners: dict[str, Path] = {}  # the slide that each line is used for
    found = {}
    for slide in slides:
        if table is None:
            found[slide.name] = Patient(find_barcode(slide.path.name) or slide.name)
            continue
        forms = [normalize_name(form) for form in (slide.name, slide.path.name, slide.path.stem)]
        used = next((form for form in forms if form in lines), None)
        if used is None:
            raise InputError(
                f"config.patients: no line for {slide.path}; add one, such as "
                f"{slide.path.name},<patient>"
            )
        if owners.setdefault(used, slide.path) != slide.path:
            raise InputError(
                f"config.patients: {used} could be {owners[used]} or {slide.path}; give a line for "
                f"each, by the names of their folders of results, such as {slide.name}"
            )
        found[slide.name] = lines[used]
    return found


def assign_splits(
    patients: Mapping[str, Patient],
    earlier: Mapping[str, str],
    shares: tuple[float, float, float],
    seed: int,
) -> dict[str, str]:
    """Puts each patient into a split, by the number of slides.

    A patient keeps the split of an earlier start, unless the user's table says another; if slides
    of several splits turn out to be of one patient, all go into the first of train, val, test. New
    patients come in an order that the seed shuffles; each goes where the sum over splits of
    (share held)^2 / share wanted grows least.

    Args:
      patients: slide -> patient.
      earlier: slide -> split, of earlier starts.
      shares: wanted of train, val and test, of the slides.
      seed: of the order.

    Returns:
      slide -> split.
    """
    slides = Counter(patient.patient for patient in patients.values())
    before: dict[str, set[str]] = {}
    for slide, (name, _) in patients.items():
        if slide in earlier:
            before.setdefault(name, set()).add(earlier[slide])
    known = {name: min(splits, key=SPLITS.index) for name, splits in before.items()}
    known |= {name: split for name, split in patients.values() if split}
    held = dict.fromkeys(SPLITS, 0)
    for name, split in known.items():
        held[split] += slides[name]

    def make_sort_key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode(errors="replace")).digest()

    wanted = [(share, split) for share, split in zip(shares, SPLITS, strict=True) if share > 0]
    for name in sorted(slides.keys() - known.keys(), key=make_sort_key):
        amount = slides[name]
        known[name] = min(wanted, key=lambda each: (2 * held[each[1]] + amount) * amount / each[0])[
            1
        ]
        held[known[name]] += amount
    return {slide: known[patient.patient] for slide, patient in patients.items()}
