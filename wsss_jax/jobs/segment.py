"""Makes tissue maps of whole slides: each in a folder, with an index of all."""

from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.files import check_writable
from wsss_jax.methods.gate import check_gate
from wsss_jax.report.colors import make_legend
from wsss_jax.slides import engines, job_slides, settings, tissue_map
from wsss_jax.slides.mapping import networks, provenance
from wsss_jax.slides.outputs import attention, cohort, dicom_seg, results
from wsss_jax.slides.reading.catalog import SlideFile

FIELDS = {
    **rules.SLIDES,
    "slides": rules.NAME,
    "phase2": rules.NAME,
    "mpp_table": rules.TEXT,
    "engine": rules.one_of("local", "ray"),
    "probabilities": rules.BOOLEAN,
    "geojson.min_area": rules.number(0, rules.LARGEST_AREA),
    "geojson.simplify": rules.number(0, 1000),
    "geojson.file": rules.added(rules.one_of("plain", "gzip", "both"), "plain"),
    "ome_zarr": rules.added(rules.BOOLEAN, False),
    "geoparquet": rules.added(rules.BOOLEAN, False),
    "dicom_seg": rules.added(rules.BOOLEAN, False),
    "picture": rules.integer(64, 2048),
    "palette": rules.added(rules.PALETTE, "dataset"),
    "preview.share": rules.added(rules.number(0, 0.25), 0.0),
    "preview.min_tiles": rules.added(rules.integer(1, rules.MOST_STEPS), 1000),
    "preview.seconds": rules.added(rules.number(0, 86_400), 20.0),
    "confidence": rules.added(rules.PROBABILITY, 0.0),
    "places.per_kind": rules.added(rules.integer(0, 20), 0),
    "places.hot_spot": rules.added(rules.number(100, 20_000), 1000.0),
    "places.uncertain": rules.added(rules.number(100, 20_000), 250.0),
    "places.thumbnail": rules.added(rules.integer(64, 512), 240),
    "attention.min_tissue": rules.added(rules.number(0, rules.LARGEST), 0.0),
    "attention.max_uncertain": rules.added(rules.PROBABILITY, 1.0),
    "attention.outlier_z": rules.added(rules.number(0, rules.LARGEST), rules.LARGEST),
    "attention.min_slides": rules.added(rules.integer(3, 1_000_000), 10),
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
    slides = job_slides.find_slides(config, results.is_result_folder)
    source = config.tissue.source
    if source not in ("detect", "off") and not Path(source).is_dir():
        raise InputError(
            f"config.tissue.source: there is no folder {source}; name one with masks, or set "
            "detect or off"
        )
    if config.dicom_seg:
        dicom_seg.check_installed()
    config, dataset = settings.complete(config)
    check_writable(workdir)
    runs.check(config, workdir, started=False)  # each slide's folder is checked for changes later
    warnings = provenance.list_warnings(provenance.read_origins(config), config.mpp)
    for warning in filter(None, [settings.describe_preview(config), *warnings]):
        print(f"warning: {warning}")
    finished = results.list_finished(workdir) if workdir.is_dir() else ()
    earlier = {summary["file"]: folder.name for folder, summary in finished}
    may_rename = source in ("detect", "off")
    slides = job_slides.use_earlier_names(slides, earlier, workdir, may_rename=may_rename)
    runs.save(config, dataset, workdir)  # before any slide: it marks the folder as a run's
    inputs = [Path(name) for name in (source, config.phase1, config.phase2) if Path(name).is_dir()]
    paths = [*inputs, *(slide.path for slide in slides)]
    of_job = cohort.Cohort(
        make_legend(dataset, config.palette),
        [slide.name for slide in slides],
        [*inputs, *(path.parent for path in paths)],
        attention.Rules(**config.attention.to_dict()),
    )
    cohort.write_cohort(workdir, of_job)  # so that the page exists from the start
    prepare = partial(_prepare, dataset=dataset)
    outcomes = engines.ENGINES[config.engine](config, prepare, slides, workdir)
    failures: dict[str, str] = {}
    for number, (slide, done, error) in enumerate(outcomes, start=1):
        tqdm.write(f"{number} of {len(slides)}: {done or f'{slide.name} FAILED: {error}'}")
        if error:
            failures[slide.name] = error
        cohort.write_cohort(workdir, of_job, slide.name, error)
    if failures:
        listed = f"listed in {workdir / cohort.FAILURES}"
        raise InputError(
            f"{len(failures)} of {len(slides)} slides failed, {listed}: {'; '.join(failures)}"
            if len(failures) > 1
            else f"1 of {len(slides)} slides failed, {listed}: {next(iter(failures.values()))}"
        )


def _prepare(config: ml_collections.ConfigDict, workdir: Path, dataset: Dataset) -> engines.Work:
    """Loads the networks; returns what segments a slide with them."""
    loaded = networks.prepare(config, workdir)

    def work(slide: SlideFile, folder: Path, **options: Any) -> str:
        return tissue_map.segment_slide(
            config, dataset, loaded, slide, folder / slide.name, **options
        )

    return work
