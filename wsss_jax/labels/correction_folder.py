"""The folder of corrections: what its patches are, of which slides, and the tables of both.

It is laid out as that of `configs/sample.py`, so that the jobs on labels read it.
`corrections.json` says how patches are cut and lists the slides; `patches.csv` and `slides.csv`
follow from it and from the database of labels.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import png
from data.dataset import Dataset, load_dataset, save_dataset
from wsss_jax import config as config_lib
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.labels.correction_splits import TrainingSlides, read_training_slides
from wsss_jax.methods.contract import find_giving
from wsss_jax.sampling import summaries, tables
from wsss_jax.slides.reading.resampling import Method

RECORD = "corrections.json"
_DESCRIPTION = "dataset.json"
_PLACE = re.compile(r"_x(\d+)_y(\d+)\.png$")  # as of `summaries.name_patch`
_UNKNOWN = dict.fromkeys(tables.COLUMNS, math.nan)  # measures: corrections are not judged


class Field(NamedTuple):
    """How patches are cut.

    Attributes:
      size: side in pixels.
      mpp: micrometers per pixel.
      resampling: of the slide, see `configs/base_slides.py`.
    """

    size: int
    mpp: float
    resampling: Method


class SlideRecord(NamedTuple):
    """A slide with corrections.

    Attributes:
      file: absolute path.
      mpp: micrometers per level-0 pixel that the user gave; None: as its metadata says.
      slide_mpp: that which holds, across and down.
      content: see `catalog.fingerprint`.
      patient, split: see `tables.SlideRow`.
    """

    file: str
    mpp: float | None
    slide_mpp: tuple[float, float]
    content: Mapping[str, Any]
    patient: str
    split: str


class Record(NamedTuple):
    """The content of `corrections.json`; `slides` by name."""

    field: Field
    slides: dict[str, SlideRecord]


class Origin(NamedTuple):
    """What a map says of the patches that its network learned from.

    Attributes:
      dataset: its description.
      field: size and resolution of the patches.
      training: slides and patients of the data set; empty where it is not at hand.
    """

    dataset: Dataset
    field: Field
    training: TrainingSlides


def find_origin(maps: Path, summary: Mapping[str, Any]) -> Origin:
    """Finds what the network of a map learned from, by the workdir of the maps.

    Args:
      maps: the workdir of `configs/segment_slides.py`.
      summary: `slide.json` of one of its slides.

    Raises:
      InputError: the workdir holds no such job, or the description of its data set is damaged.
    """
    config, dataset = runs.load(str(maps), "maps", "segment")
    network = summary.get("networks", {}).get("phase2", {})
    of_map = summary["settings"]["map"]
    field = Field(
        # Results of version 0.1 do not say; tiles are as large as patches unless asked otherwise.
        network.get("patch_size") or of_map["tile"],
        network.get("mpp") or of_map["mpp"],
        of_map.get("resampling", "triangle"),
    )
    try:
        trained, _ = runs.load(config.phase2, "phase2", find_giving("logits"))
        training = read_training_slides(Path(trained.data.root))
    except InputError:  # the run has moved: labels are no worse for it
        training = TrainingSlides()
    return Origin(dataset, field, training)


def read_record(root: Path) -> Record | None:
    """Reads `corrections.json`; None if there is none.

    Raises:
      InputError: it is damaged.
    """
    path = root / RECORD
    if not path.is_file():
        return None
    values = config_lib.read_object(path, "restore it from a copy")
    try:
        slides = {name: SlideRecord(**slide) for name, slide in values["slides"].items()}
        return Record(Field(**values["field"]), slides)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error}); restore it from a copy") from error


def write_record(root: Path, record: Record) -> None:
    """Writes `corrections.json`, which is on the disk when this returns."""
    slides = {name: slide._asdict() for name, slide in sorted(record.slides.items())}
    text = json.dumps({"field": record.field._asdict(), "slides": slides}, indent=2)
    with atomic_path(root / RECORD) as path:
        path.write_text(text + "\n", encoding="utf-8")
        flush(path)
    flush(root)


def flush(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin(root: Path, dataset: Dataset, field: Field) -> Record:
    """Begins a folder of corrections, or reads that of an earlier start.

    Raises:
      InputError: it has other files, patches of another size or resolution, or other classes.
    """
    record = read_record(root)
    if record is None:
        root.mkdir(parents=True, exist_ok=True)
        for path in sorted(root.iterdir()):
            if not path.name.startswith("."):
                raise InputError(
                    f"{root} is no folder of corrections ({RECORD} is missing) but has other "
                    f"files, such as {path.name}: name another --config.corrections"
                )
        record = Record(field, {})
        write_record(root, record)
    elif record.field != field:
        (size, mpp, resampling), new = record.field, field
        raise InputError(
            f"{root} has patches of {size} pixels at {mpp:g} micrometers per pixel ({resampling}), "
            f"these maps learned from {new.size} at {new.mpp:g} ({new.resampling}): name another "
            "--config.corrections"
        )
    description = root / _DESCRIPTION
    if not description.exists():
        with atomic_path(description) as path:
            save_dataset(dataclasses.replace(dataset, mpp=field.mpp), path)
    before = load_dataset("", root)
    for name in runs.MEANING:
        if getattr(before, name) != getattr(dataset, name):
            raise InputError(
                f"{description}: {name} is {getattr(before, name)}, but these maps have "
                f"{getattr(dataset, name)}: name another --config.corrections"
            )
    return record


def name_patch(slide: str, left: int, top: int) -> str:
    """Names a patch as tables and database do: by its path in the folder."""
    return f"{summaries.KEPT}/{slide}/{summaries.name_patch(slide, left, top)}.png"


def find_slide(name: str) -> str:
    """Finds the slide that a patch is of; "" if it is no name of `name_patch`."""
    found = _PLACE.search(name)
    slide = Path(name).parent.name
    is_name = found and name_patch(slide, int(found[1]), int(found[2])) == name
    return slide if is_name else ""


def get_place(name: str) -> tuple[str, int, int]:
    """Returns slide, left and top of a patch, by its name.

    Raises:
      ValueError: it is no name of `name_patch`.
    """
    slide, found = find_slide(name), _PLACE.search(name)
    if not slide or not found:
        raise ValueError(f"{name} is no name of a patch")
    return slide, int(found[1]), int(found[2])


def write_picture(path: Path, image: Any) -> None:
    """Writes the picture of a patch, which is on the disk when this returns.

    The bytes are those of `patch_files.write_image_quickly`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png.encode(image))
        flush(temporary)
    flush(path.parent)


def write_tables(root: Path, record: Record, patches: Sequence[str]) -> None:
    """Writes `patches.csv` and `slides.csv`.

    Args:
      root: the folder.
      record: its content.
      patches: names of those that have an answer, all of known slides.
    """
    rows, counts = [], dict.fromkeys(record.slides, 0)
    for name in sorted(patches):
        slide, left, top = get_place(name)
        of = record.slides[slide]
        counts[slide] += 1
        size0 = record.field.size * record.field.mpp / of.slide_mpp[0]
        rows.append(
            tables.PatchRow(
                *(name, slide, of.patient, of.split, left, top, size0, record.field.mpp),
                kept=True,
                reason="",
                measures=_UNKNOWN,
            )
        )
    tables.write_slides(
        root / tables.SLIDES,
        [
            tables.SlideRow(
                *(name, of.file, of.patient, of.split, *of.slide_mpp),
                patches=counts[name],
                kept=counts[name],
                note="",
                error="",
            )
            for name, of in sorted(record.slides.items())
        ],
    )
    tables.write_patches(root / tables.PATCHES, rows)
