"""The jobs that take weights in from other programs and hand them out."""

from pathlib import Path

import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from data.dataset import load_dataset
from wsss_jax import config as config_lib
from wsss_jax import phase1, phase2, runs, stablehlo, training
from wsss_jax.checkpoints import Checkpoints, State, exist
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_files, torch_names, weights

_PHASES = {1: phase1, 2: phase2}


def convert(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes a run of a file of weights, which then can be opened, evaluated and trained on.

    `config.jobs.phase1` or `config.jobs.phase2` become its settings, whichever the weights are of.

    Raises:
      InputError: the weights do not fit, or `workdir` already holds a run.
    """
    source = weights.read(Path(config.weights))
    phase = weights.phase_of(source)
    settings = config.jobs[f"phase{phase}"]
    settings.init, settings.strict = config.weights, config.strict
    if phase == 1 and settings.model.batch_norm == "auto":
        settings.model.batch_norm = "frozen"
    dataset = load_dataset(settings.data.dataset, settings.data.root)
    if exist(workdir):
        raise InputError(f"{workdir} already holds a trained network: name another --workdir")
    runs.check(settings, workdir, started=False)
    model = _PHASES[phase].build_model(settings, dataset.num_classes)
    variables, report = training.filled_variables(settings, model, source)
    runs.save(settings, dataset, workdir)
    weights.write_report(report, workdir / weights.REPORT_FILE)
    checkpoints = Checkpoints(workdir)
    try:
        checkpoints.save(State(np.int32(0), variables, None), {"history": []}, {})
    finally:
        checkpoints.close()
    print(f"{workdir} is a run of phase {phase}: {', '.join(dataset.classes)}")


def export(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the network of a run in the formats of `config.formats`, as `<job>.<format>`.

    Raises:
      InputError: no run there, or a format that it cannot take.
    """
    job = config_lib.load(Path(config.run), "run").job
    if job not in ("phase1", "phase2"):
        raise InputError(
            f"config.run: {config.run} is a run of the job {job!r}: name one of phase 1 or phase 2"
        )
    trained = (phase1 if job == "phase1" else phase2).load(config.run, "run")
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
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path.absolute(), trained.variables, force=True)
        print(f"wrote {path}")
