"""In which split a slide is whose map is corrected: nobody who is tested on may be trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data import folders
from data.patients import find_barcode, name_origin
from data.splits import SPLITS
from wsss_jax.errors import InputError
from wsss_jax.sampling import splits, tables
from wsss_jax.sampling.splits import Patient
from wsss_jax.slides.reading.catalog import SlideFile, normalize_name

_STRICTEST = SPLITS.index  # of several splits of a patient, the last counts: test


class TrainingSlides(NamedTuple):
    """What is known of the data set that a network learned from.

    Attributes:
      patients: absolute path or name of a slide -> its patient.
      splits: patient -> "train", "val" or "test".
    """

    patients: Mapping[str, str] = {}
    splits: Mapping[str, str] = {}


def read_training_slides(root: Path) -> TrainingSlides:
    """Reads which slides, and whose, a data set has.

    They are in `slides.csv` of the folder it was exported from (or its own), and in the names of
    its patches for validation and test, where these begin with those of slides or hold TCGA
    barcodes.

    Args:
      root: the data set; it need not exist.
    """
    patients: dict[str, str] = {}
    found: dict[str, str] = {}

    def add(patient: str, split: str) -> None:
        found[patient] = max(found.get(patient, split), split, key=_STRICTEST)

    for table in (root / tables.SLIDES, root.parent / tables.SLIDES):
        try:
            rows = tables.read_slides(table) if table.is_file() else []
        except InputError:  # some other table of that name
            continue
        for row in rows:
            patients |= {row.slide: row.patient, row.file: row.patient}
            add(row.patient, row.split)
    for split, path in folders.list_held_out(root):
        barcode, origin = find_barcode(path.stem), name_origin(path.stem)
        if origin:
            add(patients.setdefault(origin, barcode or origin), split)
        elif barcode:
            add(barcode, split)
    return TrainingSlides(patients, found)


def place_slide(
    slide: SlideFile, training: TrainingSlides, table: Mapping[str, Patient]
) -> Patient:
    """Finds the patient of a slide, and the split, which is "train" for new patients.

    Args:
      slide: which.
      training: what is known of the data set.
      table: patients as the user gives them, see `splits.read_patients`; may lack the slide.
    """
    lines = {normalize_name(key): patient for key, patient in table.items()}
    for form in map(normalize_name, (slide.name, slide.path.name, slide.path.stem)):
        if form in lines:
            given = lines[form]
            return given._replace(split=given.split or training.splits.get(given.patient, "train"))
    patient = training.patients.get(str(slide.path.absolute()))
    patient = patient or training.patients.get(slide.name)
    patient = patient or splits.find_patients([slide], None)[slide.name].patient
    return Patient(patient, training.splits.get(patient, "train"))
