"""The engines that do the slides of a job: this process, or workers of a Ray cluster."""

import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import ml_collections

from wsss_jax import config as config_lib
from wsss_jax import parallel
from wsss_jax.errors import InputError, Preempted
from wsss_jax.progress import catch_termination
from wsss_jax.slides.mapping import memory
from wsss_jax.slides.mapping.networks import NetworksChanged
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.raw_slide import get_first_line

_CORES = 4  # of a Ray worker without GPU: XLA computes and the readers decode with so many


class Outcome(NamedTuple):
    """The result of a slide: either `done` or `error` is a line of text, the other is empty."""

    slide: SlideFile
    done: str
    error: str


class Work(Protocol):
    """What a job does with one slide."""

    def __call__(
        self,
        slide: SlideFile,
        folder: Path,
        *,
        show_progress: bool = True,
        after_batch: Callable[[], None] = lambda: None,
    ) -> str:
        """Does a slide.

        Args:
          slide: the slide.
          folder: of all results; that of the slide is in it.
          show_progress: whether to show a progress line.
          after_batch: called now and then; its errors end the work.

        Returns:
          one line that says what was done.

        Raises:
          InputError: concerns this slide alone, unless it is `NetworksChanged`.
        """


# Prepares the work of a job in the process that does it: (configuration, folder of all results).
Prepare = Callable[[ml_collections.ConfigDict, Path], Work]


def run_locally(
    config: ml_collections.ConfigDict,
    prepare: Prepare,
    slides: Sequence[SlideFile],
    workdir: Path,
) -> Iterator[Outcome]:
    """Does one slide after the other, in this process."""
    work = prepare(config, workdir)

    def do_all() -> Iterator[Outcome]:
        with catch_termination() as terminated:

            def check() -> None:
                if terminated:
                    raise Preempted(
                        f"{workdir}: stopped by {terminated[0]} in {slide.name}; the same command "
                        "continues after its last finished part"
                    )

            for number, slide in enumerate(slides):
                if number:
                    check()
                yield attempt(config, work, slide, workdir, after_batch=check)
            terminated.clear()  # a signal after the last tile of all stops nothing

    return do_all()


def attempt(
    config: ml_collections.ConfigDict,
    work: Work,
    slide: SlideFile,
    workdir: Path,
    **options: Any,
) -> Outcome:
    """Does a slide; an error of the slide, or of its folder, becomes a line of text."""
    try:
        return Outcome(slide, work(slide, workdir, **options), "")
    except NetworksChanged:
        raise  # concerns all slides
    except InputError as error:
        message = str(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            folder, field = config_lib.find_folder(config, workdir)
            message = (
                f"{folder / slide.name}: {error.strerror}; free some space or name another {field}"
            )
        else:
            where, what = error.filename or slide.path, error.strerror or error
            message = f"{where}: {what}; correct that and give the same command again"
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (short := memory.describe_shortage(error)):
            raise
        message = f"{slide.path}: {short}"
    # Names of files may hold bytes that are no text.
    message = message.encode("utf-8", "backslashreplace").decode()
    return Outcome(slide, "", " ".join(message.split()))


def run_on_ray(
    config: ml_collections.ConfigDict,
    prepare: Prepare,
    slides: Sequence[SlideFile],
    workdir: Path,
) -> Iterator[Outcome]:
    """Distributes the slides over the workers of a Ray cluster; yields outcomes as they finish."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "config.engine is 'ray', which is not installed: pip install ray, or set "
            "--config.engine=local"
        ) from error
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)  # joins a running cluster, or the one of RAY_ADDRESS
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise InputError(
            f"config.engine: the Ray cluster cannot be joined ({get_first_line(error)}): start it "
            "with this Python and version of ray, correct RAY_ADDRESS, or set "
            "--config.engine=local"
        ) from error
    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    count = min(len(slides), gpus or max(1, cores // _CORES))
    share = {"num_gpus": 1} if gpus else {"num_cpus": min(cores, _CORES)}
    worker = ray.remote(**share)(_Worker)
    slides = [slide._replace(path=slide.path.absolute()) for slide in slides]
    arguments = prepare, _make_paths_absolute(config), workdir.absolute()
    idle = [worker.remote(*arguments) for _ in range(count)]

    def do_all() -> Iterator[Outcome]:
        waiting, working = deque(slides), dict[Any, tuple[Any, SlideFile]]()
        while waiting or working:
            while idle and waiting:
                actor, slide = idle.pop(), waiting.popleft()
                working[actor.attempt.remote(slide)] = actor, slide
            (result,), _ = ray.wait(list(working), num_returns=1)
            actor, slide = working.pop(result)
            try:
                yield ray.get(result)
                idle.append(actor)
            except NetworksChanged as error:  # without Ray's traceback
                raise NetworksChanged(str(getattr(error, "cause", error))) from error
            except ray.exceptions.RayActorError as error:
                yield Outcome(slide, "", f"{slide.path}: its worker died ({get_first_line(error)})")
                idle.append(worker.remote(*arguments))

    return do_all()


def _make_paths_absolute(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """Returns the configuration for workers, which may start in other folders."""
    config = config_lib.thaw(config)
    sections = [(config, "phase1"), (config, "phase2"), (config.tissue, "source")]
    for section, field in sections:
        if (path := section.get(field)) and Path(path).is_dir():
            section[field] = str(Path(path).absolute())
    return config_lib.freeze(config)


class _Worker:
    """Keeps what the work needs loaded in a process of Ray."""

    def __init__(self, prepare: Prepare, config: ml_collections.ConfigDict, workdir: Path):
        parallel.cache_compiled_programs()
        self._config, self._work, self._workdir = config, prepare(config, workdir), workdir

    def attempt(self, slide: SlideFile) -> Outcome:
        """Does a slide; no progress lines, which would come from all workers at once."""
        return attempt(self._config, self._work, slide, self._workdir, show_progress=False)


# (configuration, preparation, slides, folder) -> outcomes, as `config.engine` says
ENGINES: dict[str, Callable[..., Iterator[Outcome]]] = {"local": run_locally, "ray": run_on_ray}
