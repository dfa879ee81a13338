"""The tables of all slides of a folder of patches, whichever start of the job sampled them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import ml_collections

from wsss_jax.files import hold_lock
from wsss_jax.sampling import splits, summaries, tables
from wsss_jax.sampling.splits import Patient
from wsss_jax.sampling.summaries import Folders
from wsss_jax.slides.reading.catalog import SlideFile

_LOCK = ".tables"  # held while the tables are read and written
_WAIT = 60.0  # seconds to wait for another job that writes them
_UNKNOWN = math.nan


def read_slides(out: Path) -> list[tables.SlideRow]:
    """Reads the slides of earlier starts.

    Raises:
      InputError: `slides.csv` is not as it was written.
    """
    path = out / tables.SLIDES
    return tables.read_slides(path) if path.exists() else []


def write_tables(
    config: ml_collections.ConfigDict,
    out: Path,
    slides: Sequence[SlideFile],
    patients: Mapping[str, Patient],
    errors: Mapping[str, str],
) -> None:
    """Writes `patches.csv` and `slides.csv`, of this start and of earlier ones.

    Args:
      config: with `shares` and `seed`, of the splits.
      out: `config.out`.
      slides: of this start.
      patients: name of a slide of this start -> its patient.
      errors: slide -> why it failed, or "", of the slides that were tried.

    Raises:
      InputError: another process has been writing the tables for a long time.
    """
    with hold_lock(out / _LOCK, wait=_WAIT):
        # Read now: another process may have finished slides since.
        before = {row.slide: row for row in read_slides(out)}
        files = {name: row.file for name, row in before.items()}
        files |= {slide.name: str(slide.path.absolute()) for slide in slides}
        errors = {name: row.error for name, row in before.items()} | dict(errors)
        everyone = {name: Patient(row.patient) for name, row in before.items()} | dict(patients)
        earlier = {name: row.split for name, row in before.items()}
        of_slides = splits.assign_splits(everyone, earlier, tuple(config.shares), config.seed)
        rows = []
        for name in sorted(everyone):
            summary = summaries.read_summary(Folders.of(out, name).results) or {}
            mpp = summary.get("slide_mpp", (_UNKNOWN, _UNKNOWN))
            kept = summary.get("kept", ())
            rows.append(
                tables.SlideRow(
                    slide=name,
                    file=files[name],
                    patient=everyone[name].patient,
                    split=of_slides[name],
                    mpp0=mpp[0],
                    mpp0_down=mpp[1],
                    patches=len(kept),
                    kept=sum(kept),
                    note=summary.get("note", ""),
                    error=errors.get(name, ""),
                )
            )
        tables.write_slides(out / tables.SLIDES, rows)
        tables.write_patches(out / tables.PATCHES, _iterate_patches(out, rows))


def _iterate_patches(out: Path, slides: Sequence[tables.SlideRow]) -> Iterator[tables.PatchRow]:
    """Yields the patches of the finished slides; only one slide's are in memory."""
    for row in slides:
        summary = summaries.read_summary(Folders.of(out, row.slide).results)
        if summary is not None and summaries.is_finished(summary):
            yield from summaries.make_rows(summary, row.slide, row.patient, row.split)


def find_unknown(out: Path, names: Collection[str]) -> list[str]:
    """Finds the names of patches that no finished slide of `out` has, sorted."""
    unknown = set(names)
    if unknown:
        for patch in _iterate_patches(out, read_slides(out)):
            unknown.discard(Path(patch.patch).stem)
    return sorted(unknown)
