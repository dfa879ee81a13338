"""Makes tissue maps of whole slides: each in a folder, with an index of all."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections
from tqdm import tqdm

from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.files import check_writable
from wsss_jax.methods.gate import check_gate
from wsss_jax.report.colors import make_legend
from wsss_jax.slides import engines, settings
from wsss_jax.slides.mapping import provenance
from wsss_jax.slides.outputs import cohort, results
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.mpp import read_mpp_table

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
check = check_gate


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
    runs.check(config, workdir, started=False)  # each slide's folder is checked for changes later
    for warning in provenance.list_warnings(provenance.read_origins(config), config.mpp):
        print(f"warning: {warning}")
    slides = _use_earlier_names(slides, workdir, may_rename=source in ("detect", "off"))
    runs.save(config, dataset, workdir)  # before any slide: it marks the folder as a run's
    outcomes = engines.ENGINES[config.engine](config, dataset, slides, workdir)
    failures: dict[str, str] = {}
    names = [slide.name for slide in slides]
    legend = make_legend(dataset, config.palette)
    inputs = [Path(name) for name in (source, config.phase1, config.phase2) if Path(name).is_dir()]
    paths = [*inputs, *(slide.path for slide in slides)]
    folders = [*inputs, *(path.parent for path in paths)]
    for number, (slide, done, error) in enumerate(outcomes, start=1):
        tqdm.write(f"{number} of {len(slides)}: {done or f'{slide.name} FAILED: {error}'}")
        if error:
            failures[slide.name] = error
        cohort.write_cohort(workdir, legend, slide.name, error, names, folders)
    if failures:
        listed = f"listed in {workdir / cohort.FAILURES}"
        raise InputError(
            f"{len(failures)} of {len(slides)} slides failed, {listed}: {'; '.join(failures)}"
            if len(failures) > 1
            else f"1 of {len(slides)} slides failed, {listed}: {next(iter(failures.values()))}"
        )


def _find_slides(config: ml_collections.ConfigDict) -> list[SlideFile]:
    """Finds the slides with their resolutions; prints lines of the table that fit none of them."""
    table = read_mpp_table(Path(config.mpp_table)) if config.mpp_table else {}
    paths = catalog.find_slides(config.slides, results.is_result_folder)
    slides = catalog.name_slides(paths, config.slide_mpp, table)
    names = [name for file in slides for name in (file.name, file.path.name, file.path.stem)]
    known = set(map(catalog.normalize_name, names))
    unknown = sorted(name for name in table if catalog.normalize_name(name) not in known)
    if unknown:
        print(f"{config.mpp_table}: lines that fit none of the slides: {', '.join(unknown)}")
    return slides


def _use_earlier_names(
    slides: Sequence[SlideFile], workdir: Path, *, may_rename: bool
) -> list[SlideFile]:
    """Gives each slide the name under which the workdir has its finished map, if it has one.

    A slide's name changes when another slide with the same name comes in. Without `may_rename`
    (tissue masks are found by the new names) the earlier folder is only printed.
    """
    earlier = {}
    if workdir.is_dir():
        finished = results.list_finished(workdir)
        earlier = {summary["file"]: folder.name for folder, summary in finished}
    taken = {slide.name for slide in slides}
    renamed = []
    for slide in slides:
        name = earlier.get(str(slide.path.absolute()), slide.name)
        if name != slide.name and name not in taken and not (workdir / slide.name).exists():
            if may_rename:
                print(f"{slide.path}: its results stay in {workdir / name}, not {slide.name}")
                slide = slide._replace(name=name)
            else:
                print(f"{slide.path}: {workdir / name} has an earlier map of it; remove that")
        renamed.append(slide)
    return renamed
