"""Cuts patches out of slides, drops those of bad quality, and lists all of them in tables."""

from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
from tqdm import tqdm

from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.files import check_writable
from wsss_jax.sampling import cohort, slide_sample, splits, summaries, tables
from wsss_jax.sampling.summaries import Folders
from wsss_jax.slides import engines, job_slides
from wsss_jax.slides.reading.catalog import SlideFile

_SHARE = rules.PROBABILITY
FIELDS = {
    **rules.READING,
    "slides": rules.NAME,
    "out": rules.NAME,
    "mpp_table": rules.TEXT,
    "patients": rules.TEXT,
    "shares": rules.sequence(_SHARE, 3),
    "seed": rules.SEED,
    "mpp": rules.number(0, 20, open_low=True),
    # From 64 pixels on, patches that overlap by 0.9 have different places at level 0, by which
    # they are named, even where a slide is enlarged.
    "size": rules.integer(64, 2048),
    "layout": rules.one_of("random", "grid"),
    "count": rules.integer(1, 100_000),
    "max_overlap": rules.number(0, 0.9),
    "quality.max_white": _SHARE,
    "quality.min_tissue": _SHARE,
    "quality.max_pen": _SHARE,
    "quality.max_dark": _SHARE,
    "quality.min_sharpness": rules.number(-10, 10),
    "quality.max_blur_z": rules.number(0, rules.LARGEST),
    "quality.max_stain_z": rules.number(0, rules.LARGEST),
    "quality.min_difference": rules.number(0, 255),
    "engine": rules.one_of("local", "ray"),
}


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses shares that do not add up; see `config.validate`."""
    if abs(sum(config.shares) - 1) > 1e-6:
        raise InputError(
            f"{prefix}shares is {tuple(config.shares)}: train, val and test must sum to 1"
        )


@runs.shares_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Samples the slides that the configuration names, into `config.out`.

    Writes the folders of `summaries` for each slide, and the tables of all. Slides that are
    finished stay as they are; other thresholds or lines of `keep.csv` move their patches. A slide
    that fails does not keep the others from being done.

    Raises:
      InputError: at once if names, tables or settings are wrong; at the end if slides failed.
      Preempted: SIGTERM or SIGINT came; what is finished is kept.
    """
    config = config_lib.freeze(config)
    out = config_lib.find_folder(config, workdir)[0]
    slides = job_slides.find_slides(config, summaries.is_sample_folder)
    source = config.tissue.source
    if source not in ("detect", "off") and not Path(source).is_dir():
        raise InputError(
            f"config.tissue.source: there is no folder {source}; name one with masks, or set "
            "detect or off"
        )
    check_writable(out)
    runs.check(config, out, started=False)  # each slide is checked for changes later
    earlier = {row.file: row.slide for row in cohort.read_slides(out)}
    slides = job_slides.use_earlier_names(
        slides, earlier, out / summaries.SLIDES, may_rename=source in ("detect", "off")
    )
    table = splits.read_patients(Path(config.patients)) if config.patients else None
    patients = splits.find_patients(slides, table)
    job_slides.report_unknown(config.patients, table or (), slides)
    keep = tables.read_keep(out / tables.KEEP)
    config_lib.save(config, out)  # before any slide: it marks the folder as this job's
    prepare = partial(_prepare, keep=keep)
    errors: dict[str, str] = {}
    try:
        outcomes = engines.ENGINES[config.engine](config, prepare, slides, out)
        for number, (slide, done, error) in enumerate(outcomes, start=1):
            tqdm.write(f"{number} of {len(slides)}: {done or f'{slide.name} FAILED: {error}'}")
            errors[slide.name] = error
    finally:
        cohort.write_tables(config, out, slides, patients, errors)
    if unknown := cohort.find_unknown(out, keep):
        print(f"{out / tables.KEEP}: lines that fit none of the patches: {', '.join(unknown)}")
    failed = {name: error for name, error in errors.items() if error}
    if failed:
        raise InputError(
            f"{len(failed)} of {len(slides)} slides failed, listed in {out / tables.SLIDES}: "
            f"{'; '.join(failed if len(failed) > 1 else failed.values())}"
        )


def _prepare(config: ml_collections.ConfigDict, out: Path, keep: dict[str, bool]) -> engines.Work:
    """Returns what samples a slide."""
    del out

    def work(slide: SlideFile, folder: Path, **options: Any) -> str:
        folders = Folders.of(folder, slide.name)
        return slide_sample.sample_slide(config, keep, slide, folders, **options)

    return work
