"""Makes a run of a file of weights from another program."""

from pathlib import Path

import jax.numpy as jnp
import ml_collections

from data.dataset import Dataset, load_dataset
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import runs, signals
from wsss_jax.checkpoints import Checkpoints, has_checkpoint
from wsss_jax.errors import InputError
from wsss_jax.files import check_writable
from wsss_jax.interop import settings_files, weights
from wsss_jax.methods.contract import load_method
from wsss_jax.state import State
from wsss_jax.training.initialization import fill_variables

NESTED = ("phase1", "phase2", "histosegnet")
FIELDS = {"weights": rules.NAME, "strict": rules.BOOLEAN}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes a run that can be opened, evaluated and trained on.

    `config.jobs.<method>` become its settings, of the method that the weights are of. What that
    measures is taken from the file that was exported with them, see `settings_files`.

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
    settings, dataset = complete(config, weights.find_method(source))
    runs.check(settings, workdir, started=False)
    network = load_method(settings.job).build_network(settings, dataset.num_classes)
    variables, report = fill_variables(settings, network, source)
    runs.save(settings, dataset, workdir)
    weights.write_report(report, workdir / weights.REPORT_FILE)
    with signals.defer():  # threads of Orbax would go on writing
        checkpoints = Checkpoints(workdir)
        try:
            checkpoints.save(State(jnp.int32(0), variables, None), {"history": []}, {})
        finally:
            checkpoints.close()
    print(f"{workdir} is a run of {settings.job}, its classes are {', '.join(dataset.classes)}")
    if report.initial:
        print("What is left at random values must be trained before anything is predicted with it.")


def complete(
    config: ml_collections.ConfigDict, job: str
) -> tuple[ml_collections.FrozenConfigDict, Dataset]:
    """Returns the settings of the run that the weights become, and its data set."""
    data = config.jobs[job].data
    dataset = load_dataset(data.dataset, data.root)
    settings = config_lib.thaw(
        settings_files.take_up(config.jobs[job], Path(config.weights), dataset)
    )
    settings.init, settings.strict = config.weights, config.strict
    load_method(job).complete(settings, dataset)
    return config_lib.freeze(settings), dataset
