"""The job that segments whole slides: each into a folder, with an index of all."""

import errno
import os
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import parallel, runs, training
from wsss_jax.errors import InputError, Preempted
from wsss_jax.files import atomic_path, check_writable
from wsss_jax.report import colors, slide_pages
from wsss_jax.slides import (
    catalog,
    memory,
    networks,
    outputs,
    provenance,
    summaries,
    tissue_map,
)
from wsss_jax.slides.catalog import SlideFile
from wsss_jax.slides.formats import one_line
from wsss_jax.slides.networks import Networks
from wsss_jax.slides.reading import mpp_table

INDEX = "index.html"
FAILURES = "failed.txt"
_CORES = 4  # of a Ray worker without GPU: XLA computes and the readers decode with so many


class Outcome(NamedTuple):
    """What became of a slide: `done` or `error` is one line, the other is empty."""

    slide: SlideFile
    done: str
    error: str


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Segments the slides that the configuration names.

    Writes for each slide the folder `workdir/<name>` (see `tissue_map`), and for all of them
    `index.html`, `areas.csv`, `ratios.csv` and, if there is need, `failed.txt`. Slides that are
    finished with the same settings are left as they are. A slide that fails does not keep the
    others from being done.

    Raises:
      InputError: at once if the runs, the slides' names or the settings are wrong; at the end if
        slides failed.
      Preempted: SIGTERM or SIGINT came; what is finished is kept.
    """
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
    source = config.tissue.source
    if source not in ("detect", "off") and not Path(source).is_dir():
        raise InputError(
            f"config.tissue.source: there is no folder {source}; name one with masks, or set "
            "detect or off"
        )
    dataset = networks.settle(config)
    check_writable(workdir)
    runs.check(config, workdir, started=False)  # each slide sees for itself what has changed
    for warning in provenance.warnings(provenance.read(config), config.mpp):
        print(f"warning: {warning}")
    engine = _with_ray if config.engine == "ray" else _here
    runs.save(config, dataset, workdir)  # first: by it the folder is known as that of a run
    outcomes = engine(config, dataset, slides, workdir)
    failures: dict[str, str] = {}
    left = {slide.name for slide in slides}
    for number, (slide, done, error) in enumerate(outcomes, start=1):
        tqdm.write(f"{number} of {len(slides)}: {done or f'{slide.name} FAILED: {error}'}")
        left.remove(slide.name)
        if error:
            failures[slide.name] = error
        _write_cohort(config, workdir, dataset, slides, failures, left)
    if failures:
        listed = f"listed in {workdir / FAILURES}"
        raise InputError(
            f"{len(failures)} of {len(slides)} slides failed, {listed}: {'; '.join(failures)}"
            if len(failures) > 1
            else f"1 of {len(slides)} slides failed, {listed}: {next(iter(failures.values()))}"
        )


def _here(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    slides: Sequence[SlideFile],
    workdir: Path,
) -> Iterator[Outcome]:
    """One slide after the other, in this process."""
    loaded = networks.prepare(config, workdir)

    def outcomes() -> Iterator[Outcome]:
        with training.termination() as terminated:

            def check() -> None:
                if terminated:
                    raise Preempted(
                        f"{workdir}: stopped by {terminated[0]} in {slide.name}; the same command "
                        "goes on from its last finished part"
                    )

            for slide in slides:
                yield _attempt(config, dataset, loaded, slide, workdir, after_batch=check)
                check()

    return outcomes()


def _attempt(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    loaded: Networks,
    slide: SlideFile,
    workdir: Path,
    **options: Any,
) -> Outcome:
    """Segments a slide; what is wrong with it, or with where it is to go, becomes a line."""
    folder = workdir / slide.name
    try:
        done = tissue_map.segment_slide(config, dataset, loaded, slide, folder, **options)
        return Outcome(slide, done, "")
    except InputError as error:
        message = str(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{folder}: {error.strerror}; free some, or name another --workdir"
        else:
            message = f"{error.filename or slide.path}: {error.strerror or error}; mend it"
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (short := memory.shortage(error)):
            raise
        message = f"{slide.path}: {short}"
    # Names of files may hold bytes that are no text.
    message = message.encode("utf-8", "backslashreplace").decode()
    return Outcome(slide, "", " ".join(message.split()))


def _with_ray(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    slides: Sequence[SlideFile],
    workdir: Path,
) -> Iterator[Outcome]:
    """Shared out over the workers of a Ray cluster, in the order in which they are done."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "config.engine is 'ray', which is not installed: pip install ray, or set "
            "--config.engine=local"
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # joins the cluster that RAY_ADDRESS names, if any
    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    each = {"num_gpus": 1} if gpus else {"num_cpus": min(cores, _CORES)}
    count = min(len(slides), gpus or max(1, cores // _CORES))
    worker = ray.remote(**each)(_Worker)
    # Workers may start in other folders.
    for section, field in ((config, "phase1"), (config, "phase2"), (config.tissue, "source")):
        if section[field] and Path(section[field]).is_dir():
            section[field] = str(Path(section[field]).absolute())
    slides = [slide._replace(path=slide.path.absolute()) for slide in slides]
    arguments = config_lib.to_json(config), dataset, workdir.absolute()
    idle = [worker.remote(*arguments) for _ in range(count)]

    def outcomes() -> Iterator[Outcome]:
        waiting, working = deque(slides), {}
        while waiting or working:
            while idle and waiting:
                actor, slide = idle.pop(), waiting.popleft()
                working[actor.attempt.remote(slide)] = actor, slide
            (answer,), _ = ray.wait(list(working), num_returns=1)
            actor, slide = working.pop(answer)
            try:
                yield ray.get(answer)
                idle.append(actor)
            except ray.exceptions.RayActorError as error:
                yield Outcome(slide, "", f"{slide.path}: its worker died ({one_line(error)})")
                idle.append(worker.remote(*arguments))

    return outcomes()


class _Worker:
    """Keeps the networks loaded in a process of Ray's."""

    def __init__(self, config: str, dataset: Dataset, workdir: Path):
        parallel.keep_compiled_programs()
        self._config, self._dataset = config_lib.from_json(config), dataset
        self._loaded, self._workdir = networks.prepare(self._config, workdir), workdir

    def attempt(self, slide: SlideFile) -> Outcome:
        """Segments a slide; no progress lines, which would come from all workers at once."""
        return _attempt(
            self._config, self._dataset, self._loaded, slide, self._workdir, show_progress=False
        )


def _without_folders(text: str, folders: Sequence[Path]) -> str:
    """A message in which files of these folders go by their names alone."""
    for folder in folders:
        text = text.replace(f"{folder.absolute()}{os.sep}", "")
        if folder != Path():
            text = text.replace(f"{folder}{os.sep}", "")
    return text


def _write_cohort(
    config: ml_collections.ConfigDict,
    workdir: Path,
    dataset: Dataset,
    slides: Sequence[SlideFile],
    failures: Mapping[str, str],
    left: set[str],
) -> None:
    """Writes what is about all slides, as far as they are done."""
    entries = []
    tables: dict[str, list[str]] = {outputs.AREAS: [], outputs.RATIOS: []}
    in_pictures = colors.for_pictures(dataset, config.palette)
    for slide in slides:
        name = slide.name
        if name in left or name in failures:
            error = failures.get(name)
            if error is not None:  # the page may go to others
                folders = slide.path.parent, workdir, Path(config.tissue.source)
                error = _without_folders(error, folders)
            entries.append(slide_pages.IndexEntry(name, error=error))
            continue
        summary = tissue_map.read_summary(workdir / name)
        entries.append(summaries.index_entry(summary, name, in_pictures))
        for file, found in tables.items():
            if file in summary["files"]:
                found.append((workdir / name / file).read_bytes().decode("utf-8-sig"))
    slide_pages.write_index(workdir / INDEX, entries)
    for file, found in tables.items():
        if not found:
            (workdir / file).unlink(missing_ok=True)
            continue
        heading = found[0].splitlines(keepends=True)[0]
        with atomic_path(workdir / file) as path:
            body = "".join(table.removeprefix(heading) for table in found)
            path.write_text(heading + body, encoding="utf-8-sig", newline="")
    if failures:
        with atomic_path(workdir / FAILURES) as path:
            lines = [f"{name}: {error}\n" for name, error in failures.items()]
            path.write_text("".join(lines), encoding="utf-8")
    else:
        (workdir / FAILURES).unlink(missing_ok=True)
