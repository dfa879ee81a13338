"""The table of the fastest ways to compute convolutions, as measured on a device.

`python -m benchmarks.convolutions --tune` writes it; a training that finds it follows it and has
what it chose in its `config.json`, for its own continuation and for the jobs after it.

    {device: {version of JAX: {precision: {"batch": 20, "ways": [a text for each shape]}}}}
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from wsss_jax import config as config_lib
from wsss_jax import parallel
from wsss_jax.checkpoints import has_checkpoint
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.models.lowering import Choice, parse_choice

_WAYS = "convolutions.ways"
_COMMAND = "python -m benchmarks.convolutions --tune"


def take_up(
    config: ml_collections.FrozenConfigDict, workdir: Path
) -> ml_collections.FrozenConfigDict:
    """Fills `convolutions.ways` from the table, if there is one for this device.

    A run that goes on takes them from its `config.json`, whatever the table says by now.

    Args:
      config: of a training; ways that are set stay as they are.
      workdir: of the run.

    Raises:
      InputError: the table is damaged, or processes of the run have different ones.
    """
    if config.convolutions.ways:
        return config
    if has_checkpoint(workdir):
        before = config_lib.load(workdir, "workdir")
        if before.job != config.job:  # then the run is refused, see `runs.check`
            return config
        return config_lib.fill(config, {_WAYS: config_lib.get(before, _WAYS)})
    ways: Sequence[str] = ()
    note = problem = None
    try:
        ways, note = _look_up(config.convolutions.table, config.precision)
    except InputError as error:
        problem = error
    checksum = -1 if problem else zlib.crc32("\n".join(ways).encode()) >> 1
    checksums = parallel.gather(np.array(checksum, np.int32))
    if problem:
        raise problem
    if len(set(checksums.tolist())) > 1:
        raise InputError(
            f"config.convolutions.table: {config.convolutions.table} differs among the processes "
            "of this run, or their devices do: give all of them the same file, or set "
            "--config.convolutions.table=''"
        )
    if note and parallel.is_first():
        tqdm.write(note)
    return config_lib.fill(config, {_WAYS: tuple(ways)})


def _look_up(table: str, precision: str) -> tuple[tuple[str, ...], str | None]:
    """Returns the ways for this device and precision, and what is to be said of them."""
    path = Path(table)
    if not table or not path.exists():
        return (), None
    content = read(path)
    device, version = parallel.name_device(), _name_version()
    entry = content.get(device, {}).get(version, {}).get(precision)
    if entry is None:
        return (), (
            f"{path} has no ways of convolutions for {device}, {version} and {precision}: the "
            f"rules in the code choose them ({_COMMAND} --precision={precision} measures them)"
        )
    note = f"convolutions: the ways of {path}, measured in {precision} with {entry['batch']} images"
    return tuple(entry["ways"]), note


def read(path: Path) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Reads a table.

    Raises:
      InputError: it cannot be read, or holds something else.
    """
    remedy = f"remove it, or measure again ({_COMMAND}), or set --config.convolutions.table=''"
    try:
        content = json.loads(path.read_bytes())
        for versions in content.values():
            for precisions in versions.values():
                for entry in precisions.values():
                    if not isinstance(entry["batch"], int):
                        raise TypeError("batch is no number")
                    for text in entry["ways"]:
                        parse_choice(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: no table of convolutions ({error}); {remedy}") from error
    return content


def write(path: Path, precision: str, batch: int, choices: Sequence[Choice]) -> None:
    """Enters the choices for this device into a table, in the place of earlier ones of its shapes.

    Raises:
      InputError: the file is there but no table.
    """
    content = read(path) if path.exists() else {}
    precisions = content.setdefault(parallel.name_device(), {}).setdefault(_name_version(), {})
    before = map(parse_choice, precisions.get(precision, {"ways": ()})["ways"])
    merged = {choice[:2]: choice for choice in (*before, *choices)}
    ways = [str(merged[key]) for key in sorted(merged)]
    precisions[precision] = {"batch": batch, "ways": ways}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _name_version() -> str:
    return f"jax {jax.__version__}"
