"""The jobs that take weights in from other programs and hand them out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from data.dataset import load_dataset
from wsss_jax import config as config_lib
from wsss_jax import phase1, phase2, runs, signals, training
from wsss_jax.checkpoint_steps import METADATA
from wsss_jax.checkpoints import Checkpoints, State, has_checkpoint
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, check_writable
from wsss_jax.interop import stablehlo, torch_files, torch_names, weights

_PHASES = {"phase1": phase1, "phase2": phase2}
EXPORTED = "exported.json"  # which run each phase's files are of


def convert(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes a run of a file of weights, which then can be opened, evaluated and trained on.

    `config.jobs.phase1` or `config.jobs.phase2` become its settings, whichever the weights are of.

    Raises:
      InputError: the weights do not fit, or `workdir` already holds a run.
    """
    check_writable(workdir)
    _convert(config, workdir)


@runs.holds_workdir
def _convert(config: ml_collections.ConfigDict, workdir: Path) -> None:
    if has_checkpoint(workdir):
        raise InputError(f"{workdir} already holds a trained network: name another --workdir")
    source = weights.read(Path(config.weights))
    job = f"phase{weights.phase_of(source)}"
    settings = config.jobs[job]
    settings.init, settings.strict = config.weights, config.strict
    if job == "phase1" and settings.model.batch_norm == "auto":
        settings.model.batch_norm = "frozen"
    dataset = load_dataset(settings.data.dataset, settings.data.root)
    runs.check(settings, workdir, started=False)
    model = _PHASES[job].build_model(settings, dataset.num_classes)
    variables, report = training.filled_variables(settings, model, source)
    runs.save(settings, dataset, workdir)
    weights.write_report(report, workdir / weights.REPORT_FILE)
    with signals.defer():  # threads of Orbax would go on writing
        checkpoints = Checkpoints(workdir)
        try:
            checkpoints.save(State(np.int32(0), variables, None), {"history": []}, {})
        finally:
            checkpoints.close()
    print(f"{workdir} is a run of {job}, its classes are {', '.join(dataset.classes)}")
    if report.initial:
        print("What is left at random values must be trained before anything is predicted with it.")


def export(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the network of a run in the formats of `config.formats`, as `<job>.<format>`.

    Raises:
      InputError: no trained phase there, or `workdir` cannot be written, or holds anything but
        what was exported of this run, or of one of the other phase.
    """
    check_writable(workdir)
    _export(config, workdir)


@runs.holds_workdir
def _export(config: ml_collections.ConfigDict, workdir: Path) -> None:
    job = config_lib.load(Path(config.run), "run").job
    if job not in _PHASES:
        raise InputError(
            f"config.run: {config.run} is a run of the job {job!r}: name one of phase 1 or phase 2"
        )
    exported = _exported_before(config, job, workdir) | {job: str(Path(config.run).resolve())}
    trained = _PHASES[job].load(config.run, "run")
    config_lib.save(config, workdir)
    with atomic_path(workdir / EXPORTED) as path:
        path.write_text(json.dumps(exported, indent=2) + "\n", encoding="utf-8")
    state_dict = torch_names.to_torch(trained.variables)
    for name in config.formats:
        path = workdir / f"{job}.{name}"
        if name == "pth":
            torch_files.save(state_dict, path)
        elif name == "safetensors":
            weights.save_safetensors(state_dict, path)
        elif name == "stablehlo":
            size = config.size or trained.config.data.patch_size
            settings = {"precision": config.precision, "platforms": tuple(config.platforms)}
            stablehlo.save(trained, path, size=size, **settings)
        else:
            _save_orbax(trained.variables, path)
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
