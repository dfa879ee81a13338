"""Chains of jobs over seeds: which runs there are, where they lie, and which are finished."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from wsss_jax import __version__
from wsss_jax import config as config_lib
from wsss_jax.files import atomic_path


class Step(NamedTuple):
    """A run of a chain, which `main.py` could do as well.

    Attributes:
      name: of the step, such as "lung_phase2".
      config: its configuration, with the seed and the folders of the steps before.
      folder: its workdir.
      earlier: workdirs of the steps it reads.
    """

    name: str
    config: ml_collections.FrozenConfigDict
    folder: Path
    earlier: tuple[Path, ...]


Chain = tuple[Step, ...]


def name_default(step: str) -> str:
    """Names the workdir by which configurations know the run of a step: `main.py`'s default."""
    return f"runs/{step}"


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


def plan(config: ml_collections.ConfigDict, workdir: Path, seed: int) -> dict[str, Chain]:
    """Plans the runs of one seed.

    A step lies in `workdir/seed<seed>/<variant>/<step>`. Where a step names the default workdir of
    an earlier one (`runs/<step>`), that of this plan takes its place. Steps of several variants
    that have the same configuration, and so the same result, are one run, in the folder of the
    first variant, or of the one that has begun it already.

    Args:
      config: of the job `repeat`.
      workdir: its folder.
      seed: for all configurations that have a field `seed`.

    Returns:
      variant -> its steps in their order.
    """
    chains: dict[str, list[Step]] = {variant: [] for variant in config.variants}
    for name in config.steps:
        same: dict[str, list[str]] = {}
        filled = {}
        for variant, steps in chains.items():
            if name in config.jobs[variant]:
                before = {name_default(step.name): str(step.folder) for step in steps}
                filled[variant] = _fill(config.jobs[variant][name], seed, before)
                same.setdefault(json.dumps(filled[variant], sort_keys=True), []).append(variant)
        for variants in same.values():
            folders = [workdir / f"seed{seed}" / variant / name for variant in variants]
            begun = [path for path in folders if (path / config_lib.CONFIG_FILE).is_file()]
            for variant in variants:
                texts = set(list_texts(filled[variant]))
                earlier = (step.folder for step in chains[variant] if str(step.folder) in texts)
                step_config = config_lib.freeze(ml_collections.ConfigDict(filled[variant]))
                step = Step(name, step_config, (begun or folders)[0], tuple(earlier))
                chains[variant].append(step)
    return {variant: tuple(steps) for variant, steps in chains.items()}


def _fill(
    config: ml_collections.ConfigDict, seed: int, folders: Mapping[str, str]
) -> dict[str, Any]:
    """Sets the seed and the folders of earlier steps in a configuration."""

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replace(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return tuple(map(replace, value))
        return folders.get(value, value) if isinstance(value, str) else value

    values = replace(config.to_dict())
    return values | {"seed": seed} if "seed" in values else values


def record_path(folder: Path) -> Path:
    """Returns the file beside a run that says that it is finished, and of what it was made."""
    return folder.with_name(f"{folder.name}.finished.json")


def is_finished(step: Step) -> bool:
    """Tells whether a step is finished with this configuration and with what it reads.

    One that is finished but has another record, as of another version, is done again, which takes
    little: jobs do not repeat what they have done.
    """
    record = _read_record(step.folder)
    is_run = (step.folder / config_lib.CONFIG_FILE).is_file()
    return is_run and all(record.get(name) == value for name, value in _describe(step).items())


def write_record(step: Step) -> None:
    """Records that a step is finished."""
    # Those that read it compare the time: it is another one when the step was done again.
    record = {"finished": datetime.now(UTC).isoformat(), **_describe(step)}
    with atomic_path(record_path(step.folder)) as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _describe(step: Step) -> dict[str, Any]:
    """Describes of what a step is made, in the types of JSON."""
    return {
        "version": __version__,
        "config": json.loads(json.dumps(step.config.to_dict())),
        "earlier": {str(folder): _read_record(folder).get("finished") for folder in step.earlier},
    }


def _read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a run; empty if there is none, or a damaged one."""
    try:
        record = json.loads(record_path(folder).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
