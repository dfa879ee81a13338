"""The configuration of a job: checked, completed and frozen, saved and loaded."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from wsss_jax import __version__, jobs
from wsss_jax.config_rules import NOTHING, one_of
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

CONFIG_FILE = "config.json"
VERSION = "version"  # in the file only: of the software that wrote it
FIRST_VERSION = "0.1.0"  # which did not say
_LONGEST_SHOWN = 200  # characters of a wrong value in a message


def _leaves(config: Mapping, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping | ml_collections.ConfigDict) and path != "codes":
            leaves.update(_leaves(value, f"{path}."))
        else:
            leaves[path] = value
    return leaves


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuses a field that does not exist, is missing, or has an impossible value.

    Raises:
      InputError: names the field (`config.optimizer.momentum`) and what is allowed.
    """
    _validate(config, "config.")
    for path, value in _leaves(config).items():
        if isinstance(value, str):
            check_home(value, f"config.{path}")


def check_home(path: str, field: str) -> None:
    """Refuses `--workdir=~/runs`: only a shell knows `~`, and leaves it after an equals sign.

    Raises:
      InputError: the path begins with a tilde.
    """
    if path.startswith("~"):
        raise InputError(
            f"{field} is {_shown(path)}, which begins with ~: write the whole path, from / on "
            "(./~ for something of that name)"
        )


def _validate(config: ml_collections.ConfigDict, prefix: str) -> None:
    job = config.get("job")
    if not isinstance(job, str) or job not in jobs.names():
        raise InputError(f"{prefix}job is {_shown(job)}: it must be {one_of(*jobs.names()).text}")
    specification = jobs.specification(job)
    rules, nested = specification.FIELDS, getattr(specification, "NESTED", ())
    leaves = _leaves(config)
    del leaves["job"]
    inner = config.get("jobs", {})
    if nested and (not isinstance(inner, ml_collections.ConfigDict) or set(inner) != set(nested)):
        raise InputError(f"{prefix}jobs must hold {', '.join(nested)} and nothing else")
    if levels := _count_levels(specification):
        for path, each in _walk_nested(inner, levels):
            if not isinstance(each, ml_collections.ConfigDict):
                raise InputError(f"{prefix}{path} must hold the fields of that job")
            _validate(each, f"{prefix}{path}.")
        leaves = {k: v for k, v in leaves.items() if not k.startswith("jobs.")}
    for path, value in leaves.items():
        if path not in rules:
            near = difflib.get_close_matches(path, rules, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise InputError(f"{prefix}{path}: the job {job!r} has no such field{hint}")
        if not rules[path].allows(value):
            raise InputError(f"{prefix}{path} is {_shown(value)}: it must be {rules[path].text}")
    missing = sorted(set(rules) - set(leaves))
    if missing:
        raise InputError(f"{prefix}{missing[0]} is missing: it must be {rules[missing[0]].text}")
    if check := getattr(specification, "check", None):
        check(config, prefix)


def _count_levels(specification: Any) -> int:
    """Counts the levels of names below `jobs` under which a job holds other jobs."""
    return getattr(specification, "NESTED_LEVELS", int(hasattr(specification, "NESTED")))


def _walk_nested(inner: Any, levels: int, path: str = "jobs") -> Iterator[tuple[str, Any]]:
    """Yields what a job holds as configurations of other jobs, with their paths."""
    if not levels or not isinstance(inner, Mapping | ml_collections.ConfigDict):
        yield path, inner
        return
    for name, below in inner.items():
        yield from _walk_nested(below, levels - 1, f"{path}.{name}")


def freeze(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """Returns the configuration as nothing can change it any more: complete, as a job begins."""
    return ml_collections.FrozenConfigDict(config)


def thaw(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy that can be changed, for the job to complete."""
    return ml_collections.ConfigDict(config.to_dict())


def replace(config: ml_collections.ConfigDict, **fields: Any) -> ml_collections.FrozenConfigDict:
    """Returns a frozen copy with other values of some fields."""
    changed = thaw(config)
    for name, value in fields.items():
        changed[name] = value
    return freeze(changed)


def get(config: ml_collections.ConfigDict, path: str) -> Any:
    """Returns the value of a field such as "model.mean"."""
    for name in path.split("."):
        config = config[name]
    return config


def fill(
    config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> ml_collections.FrozenConfigDict:
    """Returns a frozen copy with other values of fields such as "model.mean"."""
    changed = thaw(config)
    for path, value in fields.items():
        *sections, name = path.split(".")
        section = changed
        for each in sections:
            section = section[each]
        section[name] = value
    return freeze(changed)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def differences(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> list[str]:
    """Lists the fields in which two configurations differ, as `field: a / b`."""
    a, b = _leaves(one), _leaves(other)
    return [
        f"{path}: {a.get(path)!r} / {b.get(path)!r}"
        for path in sorted(set(a) | set(b))
        if a.get(path) != b.get(path)
    ]


def name_nested(text: str, config: ml_collections.ConfigDict, path: str) -> str:
    """Names the fields in a message of a nested job as the command line does.

    Args:
      text: the message, with fields such as `--config.batch_size`.
      config: of that job; names of no field of it stay.
      path: where it is nested, such as "jobs.paper.lung_phase1".

    Returns:
      The message, with `--config.jobs.paper.lung_phase1.batch_size`.
    """
    fields = _leaves(config)
    return re.sub(
        r"(?<![\w/.])config\.(\w+(?:\.\w+)*)",
        lambda match: f"config.{path}.{match[1]}" if match[1] in fields else match[0],
        text,
    )


def find_folder(config: ml_collections.ConfigDict, workdir: Path) -> tuple[Path, str]:
    """Returns the folder that a job writes to, and the flag that names it."""
    out = config.get("out")
    return (Path(out), "--config.out") if out else (workdir, "--workdir")


def save(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes `config.json` into a run's folder, with the version of this software."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({VERSION: __version__, **config.to_dict()}, indent=2) + "\n"
    with atomic_path(workdir / CONFIG_FILE) as path:
        path.write_text(text, encoding="utf-8")


def load(workdir: Path, field: str) -> ml_collections.FrozenConfigDict:
    """Loads the configuration of an earlier run; later fields do what that version did.

    Args:
      workdir: the run's folder, as the user named it in `field`.
      field: the name of that field, for the message.

    Raises:
      InputError: no run there, or one that this version does not know.
    """
    path, values = _read(workdir, field)
    values.pop(VERSION, None)
    _add_later_fields(values)
    try:
        config = ml_collections.ConfigDict(values)
    except (ValueError, TypeError, RecursionError) as error:  # names that no field can have
        raise InputError(f"{path}: no configuration of a run; run that job again") from error
    try:
        _validate(config, f"{path}: ")
    except InputError as error:
        raise InputError(
            f"{error} (was it written by a later version?); run that job again"
        ) from error
    return freeze(config)


def version(workdir: Path, field: str) -> str:
    """Reads which version of this software wrote a run; arguments and errors as of `load`."""
    return str(_read(workdir, field)[1].get(VERSION, FIRST_VERSION))


def _read(workdir: Path, field: str) -> tuple[Path, dict[str, Any]]:
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"config.{field}: {workdir} holds no run ({CONFIG_FILE} is missing); "
            f"run that job first or set --config.{field} to its workdir"
        )
    return path, read_object(path, "run that job again")


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Reads the JSON object of a file, lists as tuples.

    Raises:
      InputError: it holds something else; the message ends with the remedy.
    """
    try:
        values = _with_tuples(json.loads(path.read_bytes()))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not an object of JSON, {{...}}; {remedy}")
    return values


def drop_later_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns a configuration without fields that came later and do what was done before them."""
    values = config.to_dict()
    for path, rule in jobs.specification(config.job).FIELDS.items():
        *sections, name = path.split(".")
        part: Any = values
        for section in sections:
            part = part.get(section, {})
        if rule.before is not NOTHING and name in part and part[name] == rule.before:
            del part[name]
    return values


def _add_later_fields(values: dict[str, Any]) -> None:
    """Gives fields that an earlier version did not have the value that does what it did."""
    job = values.get("job")
    if not isinstance(job, str) or job not in jobs.names():
        return  # `_validate` says so
    specification = jobs.specification(job)
    for path, rule in specification.FIELDS.items():
        if rule.before is NOTHING:
            continue
        *sections, name = path.split(".")
        part: Any = values
        for section in sections:
            part = part.setdefault(section, {}) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part.setdefault(name, rule.before)
    if levels := _count_levels(specification):
        for _, each in _walk_nested(values.get("jobs"), levels):
            if isinstance(each, dict):
                _add_later_fields(each)
