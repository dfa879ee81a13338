"""Chains of jobs over seeds: which runs there are, where they lie, and which are finished."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from wsss_jax import __version__
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path


class Step(NamedTuple):
    """A run of a chain, which `main.py` could do as well.

    Attributes:
      name: of the step, such as "lung_phase2".
      config: its configuration, with the seed and the folders of the steps before.
      folder: its workdir.
      earlier: workdirs of the steps it reads.
      workdir: of the job `repeat`.
    """

    name: str
    config: ml_collections.FrozenConfigDict
    folder: Path
    earlier: tuple[Path, ...]
    workdir: Path


Chain = tuple[Step, ...]

# Their results lie elsewhere than in their workdir, or they hold jobs themselves.
_UNFIT = ("prepare", "demo", "doctor", "repeat", "tables")


def name_default(step: str) -> str:
    """Names the workdir by which configurations know the run of a step: `main.py`'s default."""
    return f"runs/{step}"


def is_within(path: str, folder: str) -> bool:
    """Tells whether a path is a folder or lies in it."""
    return Path(os.path.normpath(path)).is_relative_to(folder)


def list_texts(value: Any) -> Iterator[str]:
    """Yields all texts of a configuration, on any level."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from list_texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from list_texts(inner)


def check_unique(config: ml_collections.ConfigDict, fields: Sequence[str], prefix: str) -> None:
    """Refuses fields that are empty or name something twice."""
    for field in fields:
        values = config[field]
        if not values or len(set(values)) < len(values):
            raise InputError(f"{prefix}{field} is {tuple(values)}: give at least one, none twice")


def check_steps(steps: tuple[str, ...], by_step: ml_collections.ConfigDict, path: str) -> None:
    """Refuses a variant whose steps are unknown, out of order, or not scored at the end.

    Args:
      steps: names in their order, of all variants.
      by_step: the configurations of the variant.
      path: of the variant in the configuration, for messages.
    """
    own = [step for step in steps if step in by_step]
    if unknown := sorted(set(by_step) - set(steps)):
        raise InputError(f"{path}.{unknown[0]} is none of the steps {', '.join(steps)}")
    if not own or by_step[own[-1]].job != "evaluate":
        raise InputError(f"{path}: the last step must be an evaluation, whose scores are compared")
    for index, step in enumerate(own):
        job = by_step[step].job
        if job in _UNFIT:
            raise InputError(
                f"{path}.{step}: the job {job!r} cannot be repeated: run it before, by itself"
            )
        names = set(list_texts(by_step[step].to_dict()))
        for later in (name for name in steps if name not in own[:index]):
            if any(is_within(name, name_default(later)) for name in names):
                raise InputError(
                    f"{path}.{step} reads {name_default(later)}, but no step {later} is "
                    "before it: correct the order of the steps, or name another run"
                )


def plan(
    steps: Sequence[str],
    variants: Mapping[str, Mapping[str, ml_collections.ConfigDict]],
    workdir: Path,
    seed: int,
) -> dict[str, Chain]:
    """Plans the runs of one seed.

    A step lies in `workdir/seed<seed>/<variant>/<step>`. Where a step names the default workdir of
    an earlier one (`runs/<step>`), or a path in it, that of this plan takes its place. Steps of
    several variants that have the same configuration, and so the same result, are one run, in the
    folder of the first variant, or of the one that has begun it already.

    Args:
      steps: names in their order, of all variants.
      variants: variant -> step -> its configuration.
      workdir: folder of the job.
      seed: for all configurations that have a field `seed`.

    Returns:
      variant -> its steps in their order.
    """
    chains: dict[str, list[Step]] = {variant: [] for variant in variants}
    workdir = Path(os.path.normpath(workdir))
    for name in steps:
        same: dict[str, list[str]] = {}
        filled = {}
        for variant, chain in chains.items():
            if name in variants[variant]:
                before = {name_default(step.name): str(step.folder) for step in chain}
                filled[variant] = _fill(variants[variant][name], seed, before)
                same.setdefault(json.dumps(filled[variant], sort_keys=True), []).append(variant)
        for sharing in same.values():
            folders = [workdir / f"seed{seed}" / variant / name for variant in sharing]
            folder = _choose_folder(folders, filled[sharing[0]], workdir)
            for variant in sharing:
                texts = set(list_texts(filled[variant]))
                earlier = (
                    step.folder
                    for step in chains[variant]
                    if any(is_within(text, str(step.folder)) for text in texts)
                )
                step_config = config_lib.freeze(ml_collections.ConfigDict(filled[variant]))
                chains[variant].append(Step(name, step_config, folder, tuple(earlier), workdir))
    return {variant: tuple(chain) for variant, chain in chains.items()}


def _choose_folder(folders: Sequence[Path], config: Mapping[str, Any], workdir: Path) -> Path:
    """Chooses the folder of a run that variants share: where it is finished or begun, or the first.

    One that has another configuration, which a variant had before, comes last.
    """
    wanted = _to_json(config, workdir)

    def rank(folder: Path) -> int:
        recorded = _read_record(folder).get("config")
        if recorded is not None:
            return 0 if recorded == wanted else 3
        return 1 if (folder / config_lib.CONFIG_FILE).is_file() else 2

    return min(folders, key=rank)


def _fill(
    config: ml_collections.ConfigDict, seed: int, folders: Mapping[str, str]
) -> dict[str, Any]:
    """Sets the seed and the folders of earlier steps in a configuration."""

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replace(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return tuple(map(replace, value))
        return _replace_folder(value, folders) if isinstance(value, str) else value

    values = replace(config.to_dict())
    return values | {"seed": seed} if "seed" in values else values


def _replace_folder(text: str, folders: Mapping[str, str]) -> str:
    """Replaces the default workdir of a step by its folder, also where a path leads into it."""
    # As in a shell, "runs/lung_phase2/" is the same folder.
    path = Path(os.path.normpath(text))
    for default, folder in folders.items():
        if path.is_relative_to(default):
            return str(Path(folder, path.relative_to(default)))
    return text


def record_path(folder: Path) -> Path:
    """Returns the file beside a run that says of what it is made, and whether it is finished."""
    return folder.with_name(f"{folder.name}.finished.json")


def is_finished(step: Step) -> bool:
    """Tells whether a step is finished with this configuration and with what it reads.

    One that is finished but has another record, as of another version, is done again, which takes
    little: jobs do not repeat what they have done. So is one whose folder was given to another run
    since.
    """
    record = _read_record(step.folder)
    made_of = {**describe(step), "run": _sum_configuration(step.folder)}
    return made_of["run"] is not None and all(
        record.get(name) == value for name, value in made_of.items()
    )


def describe(step: Step) -> dict[str, Any]:
    """Describes of what a step is made, in the types of JSON: before it is done, for its record.

    Folders are relative to that of the job, so that it may be moved, or seen under another path.
    """
    return {
        "version": __version__,
        "config": _to_json(step.config.to_dict(), step.workdir),
        "earlier": {
            str(folder.relative_to(step.workdir)): _read_record(folder).get("finished")
            for folder in step.earlier
        },
    }


def write_beginning(step: Step, description: Mapping[str, Any]) -> None:
    """Records of what a step is made that has begun, so that it goes on with the same alone."""
    _write_record(step.folder, description)


def write_record(step: Step, description: Mapping[str, Any]) -> None:
    """Records that a step is finished that was made of what `describe` had said."""
    # Those that read it compare the time: it is another one when the step was done again.
    finished = {
        "finished": datetime.now(UTC).isoformat(),
        "run": _sum_configuration(step.folder),
    }
    _write_record(step.folder, finished | dict(description))


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    with atomic_path(record_path(folder)) as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _sum_configuration(folder: Path) -> str | None:
    """Computes the CRC-32 of the configuration that a run's folder holds; None without."""
    try:
        return f"{zlib.crc32((folder / config_lib.CONFIG_FILE).read_bytes()):08x}"
    except FileNotFoundError:
        return None


def _to_json(config: Mapping[str, Any], workdir: Path) -> Any:
    """Returns a configuration in the types of JSON, its folders in `workdir` relative to that."""

    def shorten(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: shorten(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return list(map(shorten, value))
        if isinstance(value, str) and value.startswith(f"{workdir}{os.sep}"):
            return os.path.join(".", os.path.relpath(value, workdir))
        return value

    return shorten(config)


def _read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a run; empty if there is none, or a damaged one."""
    try:
        record = json.loads(record_path(folder).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
