"""The jobs a configuration can name, one module each.

To add one, write a module with `FIELDS` (see `config_rules`) and `run(config, workdir)`, and name
it in `JOBS`. It may also have:

  SHARED: True if several processes can do it together.
  NESTED: jobs whose configurations it holds, as `config.jobs.<name>`.
  NESTED_LEVELS: instead, if it holds jobs under names of the user: on how many levels of names,
    such as 2 for `config.jobs.<variant>.<step>`.
  check(config, prefix): refuses fields that do not go together.

The methods that can be trained are jobs, too: their `FIELDS` are those of the method, and `train`
does them.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from wsss_jax import signals
from wsss_jax.errors import InputError
from wsss_jax.methods import METHODS

JOBS = {
    "masks": "wsss_jax.jobs.masks",
    "cluster": "wsss_jax.jobs.cluster",
    "relabel": "wsss_jax.jobs.relabel",
    "evaluate": "wsss_jax.jobs.evaluate",
    "segment": "wsss_jax.jobs.segment",
    "doctor": "wsss_jax.jobs.doctor",
    "compare_maps": "wsss_jax.jobs.compare_maps",
    "recount": "wsss_jax.jobs.recount",
    "prepare": "wsss_jax.jobs.prepare",
    "polygons": "wsss_jax.jobs.polygons",
    "view": "wsss_jax.jobs.view",
    "sample": "wsss_jax.jobs.sample",
    "demo": "wsss_jax.jobs.demo",
    "draw": "wsss_jax.jobs.draw",
    "convert": "wsss_jax.jobs.convert",
    "export": "wsss_jax.jobs.export",
    "compare": "wsss_jax.jobs.compare",
    "repeat": "wsss_jax.jobs.repeat",
    "label": "wsss_jax.jobs.label",
    "export_labels": "wsss_jax.jobs.export_labels",
    "study": "wsss_jax.jobs.study",
    "tables": "wsss_jax.jobs.tables",
}
_TRAIN = "wsss_jax.jobs.train"


def names() -> tuple[str, ...]:
    """Returns the names of all jobs."""
    return (*METHODS, *JOBS)


def specification(name: str) -> Any:
    """Loads the module that says which fields a job has: its own, or that of the method."""
    return importlib.import_module(METHODS.get(name) or JOBS[name])


def load(name: str) -> ModuleType:
    """Loads the module that does a job; only now, since what a job needs may take seconds."""
    with signals.defer():  # a signal amid the loading of a library's own code comes out as an error
        return importlib.import_module(_TRAIN if name in METHODS else JOBS[name])


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Does the job that the configuration names.

    Raises:
      InputError: something that the user can correct.
    """
    import jax

    job = load(config.job)
    if jax.process_count() > 1:
        if not getattr(job, "SHARED", False):
            raise InputError(
                f"the job {config.job!r} is done by one process: start it without --coordinator, "
                "or outside of the launcher"
            )
        if config.job not in METHODS:
            signals.restore_handlers()  # JAX has taken SIGTERM, which only training asks it for
    job.run(config, workdir)
