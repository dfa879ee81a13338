"""Makes tissue maps of whole slides: each in a folder, with an index of all."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from tqdm import tqdm

from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.files import check_writable
from wsss_jax.report import colors
from wsss_jax.slides import engines, settings
from wsss_jax.slides.mapping import provenance
from wsss_jax.slides.outputs import cohort, results
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.reading import mpp_table

FIELDS = {
    **rules.SLIDES,
    "slides": rules.NAME,
    "phase2": rules.NAME,
    "mpp_table": rules.TEXT,
    "engine": rules.one_of("local", "ray"),
    "probabilities": rules.BOOLEAN,
    "geojson.min_area": rules.number(0, rules.LARGEST_AREA),
    "geojson.simplify": rules.number(0, 1000),
    "picture": rules.integer(64, 2048),
    "palette": rules.added(rules.PALETTE, "dataset"),
}


@runs.shares_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Segments the slides that the configuration names.

    Writes for each slide the folder `workdir/<name>` (see `tissue_map`), and what `cohort` makes
    of all folders in the workdir. Slides that are finished with the same settings are left as they
    are. A slide that fails does not keep the others from being done.

    Raises:
      InputError: at once if the runs, the slides' names or the settings are wrong; at the end if
        slides failed.
      NetworksChanged: see `networks.prepare`.
      Preempted: SIGTERM or SIGINT came; what is finished is kept.
    """
    slides = _find_slides(config)
    source = config.tissue.source
    if source not in ("detect", "off") and not Path(source).is_dir():
        raise InputError(
            f"config.tissue.source: there is no folder {source}; name one with masks, or set "
            "detect or off"
        )
    config, dataset = settings.complete(config)
    check_writable(workdir)
    runs.check(config, workdir, started=False)  # each slide sees for itself what has changed
    for warning in provenance.warnings(provenance.read(config), config.mpp):
        print(f"warning: {warning}")
    slides = _under_earlier_names(slides, workdir, may_rename=source in ("detect", "off"))
    runs.save(config, dataset, workdir)  # first: by it the folder is known as that of a run
    outcomes = engines.ENGINES[config.engine](config, dataset, slides, workdir)
    failures: dict[str, str] = {}
    names = [slide.name for slide in slides]
    in_pictures = colors.for_pictures(dataset, config.palette)
    named = [Path(each) for each in (source, config.phase1, config.phase2) if Path(each).is_dir()]
    folders = [*(slide.path.parent for slide in slides), *named, *(each.parent for each in named)]
    for number, (slide, done, error) in enumerate(outcomes, start=1):
        tqdm.write(f"{number} of {len(slides)}: {done or f'{slide.name} FAILED: {error}'}")
        if error:
            failures[slide.name] = error
        cohort.write(workdir, in_pictures, slide.name, error, names, folders)
    if failures:
        listed = f"listed in {workdir / cohort.FAILURES}"
        raise InputError(
            f"{len(failures)} of {len(slides)} slides failed, {listed}: {'; '.join(failures)}"
            if len(failures) > 1
            else f"1 of {len(slides)} slides failed, {listed}: {next(iter(failures.values()))}"
        )


def _find_slides(config: ml_collections.ConfigDict) -> list[SlideFile]:
    """Finds the slides with their resolutions, and names lines of the table that fit none."""
    table = mpp_table(Path(config.mpp_table)) if config.mpp_table else {}
    slides = catalog.files(catalog.find(config.slides), config.slide_mpp, table)
    known = {
        unicodedata.normalize("NFC", name)
        for slide in slides
        for name in (slide.name, slide.path.name, slide.path.stem)
    }
    unknown = [name for name in table if unicodedata.normalize("NFC", name) not in known]
    if unknown:
        print(f"{config.mpp_table}: for none of these slides: {', '.join(sorted(unknown))}")
    return slides


def _under_earlier_names(
    slides: Sequence[SlideFile], workdir: Path, *, may_rename: bool
) -> list[SlideFile]:
    """The slides, each by the name under which the workdir has its finished map, if it has one.

    A slide's name may change when another one is called as it. Given masks are looked for by the
    new name (not `may_rename`): then it is only said.
    """
    earlier = {}
    if workdir.is_dir():
        earlier = {each["file"]: folder.name for folder, each in results.finished(workdir)}
    taken = {slide.name for slide in slides}
    found = []
    for slide in slides:
        name = earlier.get(str(slide.path.absolute()), slide.name)
        if name != slide.name and name not in taken and not (workdir / slide.name).exists():
            if may_rename:
                print(f"{slide.path}: its results stay in {workdir / name}, not {slide.name}")
                slide = slide._replace(name=name)
            else:
                print(f"{slide.path}: {workdir / name} has an earlier map of it; remove that")
        found.append(slide)
    return found
