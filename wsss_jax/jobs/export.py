"""Exports a trained run for other programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import orbax.checkpoint as ocp

from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import methods, runs, signals
from wsss_jax.checkpoint_steps import METADATA
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, check_writable
from wsss_jax.interop import settings_files, stablehlo, torch_files, torch_names, weights
from wsss_jax.training.trained import load_trained

FIELDS = {
    "run": rules.NAME,
    "formats": rules.sequence(rules.one_of("pth", "safetensors", "stablehlo", "orbax")),
    "precision": rules.one_of(*rules.PRECISIONS),
    "platforms": rules.sequence(rules.one_of("cpu", "cuda", "tpu")),
    "size": rules.integer(0, rules.MOST_PIXELS),
}
EXPORTED = "exported.json"  # which run the files of each method are of


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses empty lists; see `config.validate`."""
    for field in ("formats", "platforms"):
        if not config[field]:
            raise InputError(f"{prefix}{field} is empty: it must be {FIELDS[field].text}")


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the network of a run in the formats of `config.formats`, as `<job>.<format>`.

    Of a method that measures what its network needs, that is written too, as `<job>.json`.

    Raises:
      InputError: no trained phase there, or `workdir` cannot be written, or holds anything but
        what was exported of this run, or of one of the other phase.
    """
    check_writable(workdir)
    _export(config, workdir)


@runs.holds_workdir
def _export(config: ml_collections.ConfigDict, workdir: Path) -> None:
    job = config_lib.load(Path(config.run), "run").job
    if job not in methods.METHODS:
        raise InputError(
            f"config.run: {config.run} is a run of the job {job!r}: name one of "
            f"{' or '.join(methods.METHODS)}"
        )
    exported = _exported_before(config, job, workdir) | {job: str(Path(config.run).resolve())}
    loaded = load_trained(config.run, "run", "")
    config_lib.save(config, workdir)
    with atomic_path(workdir / EXPORTED) as path:
        path.write_text(json.dumps(exported, indent=2) + "\n", encoding="utf-8")
    state_dict = torch_names.to_torch(loaded.variables)
    for name in config.formats:
        path = workdir / f"{job}.{name}"
        if name == "pth":
            torch_files.save(state_dict, path)
        elif name == "safetensors":
            weights.save_safetensors(state_dict, path)
        elif name == "stablehlo":
            size = config.size or loaded.config.data.patch_size
            settings = {"precision": config.precision, "platforms": tuple(config.platforms)}
            stablehlo.save(loaded, path, size=size, **settings)
        else:
            _save_orbax(loaded.variables, path)
        print(f"wrote {path}")
    if settings_files.list_fields(job):
        path = settings_files.find(workdir / job)
        settings_files.save(loaded, path)
        print(f"wrote {path}")


def _exported_before(config: ml_collections.ConfigDict, job: str, workdir: Path) -> dict[str, str]:
    """Job -> run of what is in a folder; further formats, or the same anew, may join it."""
    runs.check(config, workdir, started=False)
    path = workdir / EXPORTED
    if not path.is_file():
        return {}
    try:
        before = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}): name another --workdir") from error
    if before.get(job, run := str(Path(config.run).resolve())) != run:
        raise InputError(
            f"{workdir} holds what was exported of the run {before[job]}, this one is {run}: "
            "name another --workdir"
        )
    return before


def _save_orbax(variables: Mapping[str, Any], path: Path) -> None:
    """Writes an Orbax checkpoint, in the place of an earlier one."""
    if path.exists() and not (path / METADATA).is_file():
        raise InputError(f"{path} is no Orbax checkpoint: move it, or name another --workdir")
    with (
        signals.defer(),  # threads of Orbax would go on writing
        atomic_path(path) as temporary,
        ocp.StandardCheckpointer() as checkpointer,
    ):
        checkpointer.save(temporary.absolute(), variables)
        checkpointer.wait_until_finished()
        if path.exists():  # a folder does not replace one that holds something
            path.rename(temporary.parent / "earlier")
