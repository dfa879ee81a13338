"""Measures time and consensus of labels and of drawings, as Table V of the paper."""

from pathlib import Path

import ml_collections

from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.labels import study
from wsss_jax.labels.store import open_store
from wsss_jax.labels.study import Study

FIELDS = {
    "labels": rules.TEXT,
    "drawings": rules.TEXT,
}


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the table and a figure of what is named: `study.txt` (also printed), and others.

    Raises:
      InputError: nothing is named, or it cannot be read.
    """
    ways = {}
    if config.labels:
        with open_store(Path(config.labels)) as store:
            ways["patch labels"] = study.measure_labels(store)
    if config.drawings:
        path = Path(config.drawings)
        if path.is_file():
            with open_store(path) as store:
                ways["drawings"] = study.measure_labels(store)
        else:
            ways["drawings"] = study.measure_drawings(path)
    if not ways:
        raise InputError("name the database of labels, --config.labels, or --config.drawings")
    found = Study(ways)
    config_lib.save(config, workdir)
    study.write(workdir, found)
    print(study.format_text(found))
