"""The job that segments whole slides: each into a folder, with an index of all."""

import errno
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import parallel, progress, runs
from wsss_jax.errors import InputError, Preempted
from wsss_jax.files import check_writable
from wsss_jax.report import colors
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping import memory, networks, provenance
from wsss_jax.slides.mapping.networks import Networks, NetworksChanged
from wsss_jax.slides.outputs import cohort, results
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.formats import one_line
from wsss_jax.slides.reading.reading import mpp_table

_CORES = 4  # of a Ray worker without GPU: XLA computes and the readers decode with so many


class Outcome(NamedTuple):
    """What became of a slide: `done` or `error` is one line, the other is empty."""

    slide: SlideFile
    done: str
    error: str


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
    slides = _under_earlier_names(slides, workdir, may_rename=source in ("detect", "off"))
    engine = _with_ray if config.engine == "ray" else _here
    runs.save(config, dataset, workdir)  # first: by it the folder is known as that of a run
    outcomes = engine(config, dataset, slides, workdir)
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


def _here(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    slides: Sequence[SlideFile],
    workdir: Path,
) -> Iterator[Outcome]:
    """One slide after the other, in this process."""
    loaded = networks.prepare(config, workdir)

    def outcomes() -> Iterator[Outcome]:
        with progress.catch_termination() as terminated:

            def check() -> None:
                if terminated:
                    raise Preempted(
                        f"{workdir}: stopped by {terminated[0]} in {slide.name}; the same command "
                        "goes on from its last finished part"
                    )

            for number, slide in enumerate(slides):
                if number:
                    check()
                yield _attempt(config, dataset, loaded, slide, workdir, after_batch=check)
            terminated.clear()  # a signal after the last tile of all stops nothing

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
    except NetworksChanged:
        raise  # of no slide alone
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
            except NetworksChanged as error:  # without Ray's traceback
                raise NetworksChanged(str(getattr(error, "cause", error))) from error
            except ray.exceptions.RayActorError as error:
                yield Outcome(slide, "", f"{slide.path}: its worker died ({one_line(error)})")
                idle.append(worker.remote(*arguments))

    return outcomes()


class _Worker:
    """Keeps the networks loaded in a process of Ray's."""

    def __init__(self, config: str, dataset: Dataset, workdir: Path):
        parallel.cache_compiled_programs()
        self._config, self._dataset = config_lib.from_json(config), dataset
        self._loaded, self._workdir = networks.prepare(self._config, workdir), workdir

    def attempt(self, slide: SlideFile) -> Outcome:
        """Segments a slide; no progress lines, which would come from all workers at once."""
        return _attempt(
            self._config, self._dataset, self._loaded, slide, self._workdir, show_progress=False
        )
