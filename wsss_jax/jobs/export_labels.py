"""Writes the data set that follows from what people have labeled."""

from pathlib import Path

import ml_collections

from wsss_jax.labels import project
from wsss_jax.labels.store import open_store

FIELDS = project.FIELDS


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Exports the labels that are in the database, also while the pages are open.

    Raises:
      InputError: no database, other classes, or foreign files in the folder of the data set.
    """
    found = project.load_project(config)
    with open_store(found.database) as store:
        settings = project.load_settings(store)
        desk = project.make_desk(found, store, settings, config.leave_out)
        counts = project.export(found, desk, config.rule or settings.rule)
    for how, count in sorted(counts.items()):
        print(f"{count:7} {how}")
    print(f"exported to {found.out}")
