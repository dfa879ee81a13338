"""A folder of patches with its description and its database of labels."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from data import pictures
from data.dataset import Dataset, load_dataset, save_dataset
from data.patch_files import IMAGE_MODES
from wsss_jax import config_rules as rules
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, hold_lock
from wsss_jax.labels import consensus, dataset_export
from wsss_jax.labels.desk import Dealing, Desk
from wsss_jax.labels.patches import PatchFile, find_patches
from wsss_jax.labels.review import compare_people, review
from wsss_jax.labels.store import Store, open_store
from wsss_jax.report.colors import make_colorblind_palette

FIELDS = {
    "data.root": rules.TEXT,
    "data.dataset": rules.TEXT,
    "classes": rules.sequence(rules.NAME),
    "database": rules.TEXT,
    "leave_out": rules.sequence(rules.NAME),
    "rule": rules.one_of("", *consensus.RULES),
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
        resolutions = {patch.mpp for patch in patches.values()}
        _describe(root, config.classes, resolutions.pop() if len(resolutions) == 1 else None)
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


def _describe(root: Path, classes: Sequence[str], mpp: float | None) -> None:
    """Writes a description of new data, whose colors all eyes tell apart.

    Args:
      root: where.
      classes: C names.
      mpp: micrometers per pixel of the patches, at which slides are then segmented.
    """
    palette = (*make_colorblind_palette(len(classes)), _WHITE)
    dataset = Dataset(
        name=root.resolve().name,
        classes=tuple(classes),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in palette),
        white=True,
        label_notation="spaces",
        present_share=0.0,
        mpp=mpp,
    )
    with atomic_path(root / _DESCRIPTION) as path:
        save_dataset(dataset, path)
        try:
            load_dataset(str(path), root)
        except InputError as error:
            problem = str(error).removeprefix(f"{path}: ")
            raise InputError(f"config.classes is {tuple(classes)}: {problem}") from error


@contextlib.contextmanager
def open_to_write(project: Project) -> Iterator[Store]:
    """Opens the database, which one process at a time may write."""
    with (
        hold_lock(project.database.with_name(f".{project.database.name}.lock")),
        open_store(project.database, project.dataset.classes) as store,
    ):
        yield store


def export(project: Project, desk: Desk, rule: str) -> Counter[str]:
    """Exports the data set that follows from the answers; see `dataset_export.export`."""
    reviewed = review(desk, rule)
    return dataset_export.export(
        project.out,
        project.dataset,
        project.patches,
        reviewed,
        compare_people(desk, reviewed),
        desk.is_random,
    )


class Settings(NamedTuple):
    """How patches are dealt and labels follow; kept in the database for later jobs.

    Attributes:
      people: names of the annotators.
      overlap, seed, random_share: see `desk.Dealing`.
      rule: of `consensus.RULES`.
    """

    people: tuple[str, ...]
    overlap: float
    seed: int
    random_share: float
    rule: str


def load_settings(store: Store) -> Settings:
    """Loads the settings with which the pages were served last.

    Raises:
      InputError: they never were.
    """
    found = store.load_settings()
    if not found:
        raise InputError(f"{store.path}: nobody has labeled yet: start configs/label.py")
    return Settings(**{**found, "people": tuple(found["people"])})


def make_desk(
    project: Project,
    store: Store,
    settings: Settings,
    leave_out: Sequence[str],
    priority: Mapping[str, float] | None = None,
) -> Desk:
    """Seats the people at the patches that are there.

    Raises:
      InputError: the database has other classes, or nobody of a name that is left out.
    """
    if store.list_classes() != project.dataset.classes:
        raise InputError(
            f"{project.database} has labels of the classes {', '.join(store.list_classes())}, the "
            f"data set has {', '.join(project.dataset.classes)}: correct its description"
        )
    known = [person.name for person in store.list_people()]
    if unknown := [name for name in leave_out if name not in known]:
        raise InputError(
            f"config.leave_out: there is nobody called {unknown[0]}; there is: {', '.join(known)}"
        )
    dealing = Dealing(
        settings.overlap, settings.seed, priority, settings.random_share, tuple(leave_out)
    )
    return Desk(store, list(project.patches), settings.people, dealing)


def list_odd_patches(patches: Mapping[str, PatchFile]) -> list[str]:
    """Lists patches of another size than most, or that cannot be read: training refuses them."""
    sizes: dict[str, tuple[int, int] | None] = {}
    for name, patch in patches.items():
        try:
            # Not checked for damage of its pixels: that would take as long as reading them all.
            with pictures.open_picture(patch.path, pictures.PATCH_FORMATS, checked=True) as picture:
                sizes[name] = picture.size if picture.mode in IMAGE_MODES else None
        except (InputError, OSError):
            sizes[name] = None
    counts = Counter(size for size in sizes.values() if size)
    usual = counts.most_common(1)[0][0] if counts else None
    return [name for name, size in sizes.items() if size is None or size != usual]
