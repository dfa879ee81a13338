"""A folder of patches with its description and its database of labels."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_collections

from data.dataset import Dataset, load_dataset, save_dataset
from wsss_jax import config_rules as rules
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, hold_lock
from wsss_jax.labels import consensus, dataset_export
from wsss_jax.labels.desk import Dealing, Desk
from wsss_jax.labels.patches import PatchFile, find_patches
from wsss_jax.labels.review import measure_agreement, review, tabulate_votes
from wsss_jax.labels.store import ANNOTATOR, CHIEF, Store, open_store
from wsss_jax.report.colors import make_colorblind_palette

FIELDS = {
    "data.root": rules.TEXT,
    "data.dataset": rules.TEXT,
    "classes": rules.sequence(rules.NAME),
    "database": rules.TEXT,
    "people": rules.sequence(rules.NAME),
    "overlap": rules.PROBABILITY,
    "seed": rules.SEED,
    "rule": rules.one_of(*consensus.RULES),
    "out": rules.TEXT,
}
_WHITE = (255, 255, 255)
_DESCRIPTION = "dataset.json"


class Project(NamedTuple):
    """What is labeled.

    Attributes:
      dataset: its description.
      patches: by name.
      database: file of the labels.
      out: folder of the data set that is exported.
    """

    dataset: Dataset
    patches: Mapping[str, PatchFile]
    database: Path
    out: Path


def load_project(config: ml_collections.ConfigDict) -> Project:
    """Finds the patches and their description, which is written if only classes are named.

    Raises:
      InputError: no patches, no description and no classes, or others than described.
    """
    if not config.data.root:
        raise InputError("name the folder of the patches: --config.data.root")
    root = Path(config.data.root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; correct --config.data.root")
    patches = find_patches(root)
    description = root / _DESCRIPTION
    if not config.data.dataset and not description.exists():
        if not config.classes:
            raise InputError(
                f"{description}: no such file; name the classes, such as "
                "--config.classes=\"('tumor','stroma')\", and it is written"
            )
        _describe(root, config.classes)
    dataset = load_dataset(config.data.dataset, root)
    if config.classes and tuple(config.classes) != dataset.classes:
        raise InputError(
            f"config.classes is {tuple(config.classes)}, but {config.data.dataset or description} "
            f"has {dataset.classes}: leave --config.classes out, or correct that file"
        )
    return Project(
        dataset,
        patches,
        Path(config.database or root / "labels.sqlite"),
        Path(config.out or root / "labeled"),
    )


def _describe(root: Path, classes: tuple[str, ...]) -> None:
    """Writes a description of new data, whose colors all eyes tell apart."""
    palette = (*make_colorblind_palette(len(classes)), _WHITE)
    dataset = Dataset(
        name=root.resolve().name,
        classes=tuple(classes),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in palette),
        white=True,
        label_notation="spaces",
        present_share=0.0,
    )
    with atomic_path(root / _DESCRIPTION) as path:
        save_dataset(dataset, path)
        load_dataset(str(path), root)  # names may be impossible


@contextlib.contextmanager
def open_to_write(project: Project) -> Iterator[Store]:
    """Opens the database, which one process at a time may write."""
    with (
        hold_lock(project.database.with_name(f".{project.database.name}.lock")),
        open_store(project.database, project.dataset.classes) as store,
    ):
        yield store


def export(config: ml_collections.ConfigDict, project: Project, desk: Desk) -> Counter[str]:
    """Exports the data set that follows from the answers; see `dataset_export.export`."""
    reviewed = review(desk, config.rule)
    people = [person.name for person in desk.people.values() if person.role != CHIEF]
    votes = tabulate_votes([each.answers for each in reviewed], people, project.dataset.num_classes)
    agreement = measure_agreement(votes, people)
    return dataset_export.export(
        project.out, project.dataset, project.patches, reviewed, people, agreement
    )


def make_desk(
    config: ml_collections.ConfigDict,
    project: Project,
    store: Store,
    priority: Mapping[str, float] | None = None,
    random_share: float = 1.0,
) -> Desk:
    """Seats the people at the patches that are there."""
    people = {person.name: person.role for person in store.list_people()}
    if unknown := [name for name in config.people if people.get(name) != ANNOTATOR]:
        raise InputError(
            f"{project.database} has no annotator {unknown[0]}: correct --config.people; there is: "
            f"{', '.join(name for name, role in people.items() if role == ANNOTATOR)}"
        )
    if store.list_classes() != project.dataset.classes:
        raise InputError(
            f"{project.database} has labels of the classes {', '.join(store.list_classes())}, the "
            f"data set has {', '.join(project.dataset.classes)}: correct its description"
        )
    dealing = Dealing(config.overlap, config.seed, priority, random_share)
    return Desk(store, list(project.patches), config.people, dealing)
