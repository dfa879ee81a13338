"""Sources of patches: PNG files of folders or an ArrayRecord store, all files checked."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import cv2
import ml_collections
import numpy as np
from tqdm import tqdm

from data import folders, patch_checks, patch_files
from data.dataset import Dataset, derive_label, load_dataset
from data.folders import Patch
from wsss_jax import further_patches, parallel
from wsss_jax.errors import InputError
from wsss_jax.patch_records import PatchRecord

if TYPE_CHECKING:
    from data import patches_tfds

Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """Random access to the elements that batches are made of."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class Source(Examples, Protocol):
    """Random access to patches.

    An element has `image` (S, S, 3) uint8, `label` (C,) uint8, `index` () int32 and, if there are
    masks, `masks` (L, S, S) uint8. `names[index]` is the patch's stem; `records` tell a run which
    patches these are.
    """

    names: Sequence[str]
    records: Sequence[PatchRecord]


@dataclass(eq=False)
class FolderSource:
    """A `Source` of PNG files; see `data.folders`.

    Attributes:
      patches: with a label, a mask, or both; checked by `patch_checks.check_patches`.
      dataset: their data set.
      size: S, the side in pixels.
      masks: L lists with a file of S pixels for every patch; none: the patches' own masks.
      records: of the patches.
      resize: resizes images (area or bilinear) and their own masks (nearest) to S.
    """

    patches: Sequence[Patch]
    dataset: Dataset
    size: int
    masks: Sequence[Sequence[Path]]
    records: Sequence[PatchRecord]
    resize: bool

    def __post_init__(self) -> None:
        self.names: Sequence[str] = [patch.stem for patch in self.patches]

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Batch:
        patch = self.patches[index]
        own_size = None if self.resize else self.size
        image = patch_files.read_image(patch.image, own_size, checked=True)
        masks = _read_masks(self.masks, index, self.dataset, self.size)
        if not masks and patch.mask is not None:
            mask = patch_files.read_mask(patch.mask, self.dataset, own_size, checked=True)
            masks = [self._fit(mask, cv2.INTER_NEAREST)]
        label = patch.label if patch.label is not None else derive_label(masks[0], self.dataset)
        return _make_element(index, self._fit(image, cv2.INTER_AREA), label, masks)

    def _fit(self, array: np.ndarray, interpolation: int) -> np.ndarray:
        if array.shape[:2] == (self.size, self.size):
            return array
        return cv2.resize(array, (self.size, self.size), interpolation=interpolation)


@dataclass(eq=False)
class StoreSource:
    """A `Source` of an ArrayRecord store; masks of other folders are read as files."""

    store: "patches_tfds.Store"
    dataset: Dataset
    size: int
    masks: Sequence[Sequence[Path]]
    records: Sequence[PatchRecord]

    def __post_init__(self) -> None:
        self.names: Sequence[str] = self.store.names

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Batch:
        record = self.store[index]
        masks = _read_masks(self.masks, index, self.dataset, self.size)
        if not masks and record["mask"].size:
            masks = [record["mask"]]
        return _make_element(index, record["image"], record["label"], masks)


@dataclass(eq=False)
class ExtendedSource:
    """A `Source` whose elements have a further array.

    Attributes:
      source: of the elements.
      name: of the array.
      values: (N, ...), the array of each element.
      records: of the patches, by which a run knows the array, too.
    """

    source: Source
    name: str
    values: np.ndarray
    records: Sequence[PatchRecord]

    def __post_init__(self) -> None:
        self.names: Sequence[str] = self.source.names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        return {**self.source[index], self.name: self.values[index]}


def open_source(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    split: Literal["train", "val", "test"],
    mask_dirs: Sequence[Path] = (),
    left_out: Collection[str] = (),
) -> Source:
    """Opens a split of the data set of `config.data` after checking all of its files.

    Args:
      config: the fields `config.data`.
      dataset: its description.
      split: training patches carry labels in their names; those of "val" and "test" have true
        masks, or labels if the split has no masks.
      mask_dirs: folders of (pseudo) masks, `<stem>.png`, which replace the true ones.
      left_out: stems of patches that are not part of the source.

    Raises:
      InputError: a folder or file is missing or bad, or as of `further_patches.list_patches`.
    """
    root, size = Path(config.root), config.patch_size
    if not root.is_dir():
        raise InputError(f"config.data.root: no such folder {root}; see data/README.md")
    _refuse_other_classes(root, config.dataset, dataset)
    if config.source == "tfds":
        # Imported here: tensorflow-datasets takes a while to load, and few runs need it.
        from data import patches_tfds

        for field in ("resize", "more"):
            if config[field]:
                raise InputError(f"config.data.{field} works with config.data.source=folder only")
        store_dir = root / "arrayrecord"
        if parallel.is_first():
            patches_tfds.build(root, dataset, size, store_dir)
        parallel.wait_for_all("built the store")
        store = patches_tfds.open_split(store_dir, split, left_out)
        records = store.records
    else:
        has_labels = split == "train" or not folders.has_masks(root, split)
        read = folders.list_labeled_patches if has_labels else folders.list_annotated_patches
        patches = read(root, split, dataset)
        if split == "train":
            patches += further_patches.list_patches(
                config.more, root, dataset, patches, resize=config.resize
            )
        patches = [each for each in patches if each.stem not in left_out]
        checksums = patch_checks.check_patches(patches, None if config.resize else size, dataset)
        records = patch_checks.make_records(patches, checksums)
    if not records:
        raise InputError(
            f"{root}: all patches are left out by the masks of config.masks: make other masks"
        )
    if split == "train":
        _warn_about_labels(records, dataset)
    masks, records = _find_masks(mask_dirs, records, dataset, size)
    if config.source == "tfds":
        return StoreSource(store, dataset, size, masks, records)
    return FolderSource(patches, dataset, size, masks, records, resize=config.resize)


def _read_masks(
    masks: Sequence[Sequence[Path]], index: int, dataset: Dataset, size: int
) -> list[np.ndarray]:
    return [patch_files.read_mask(paths[index], dataset, size, checked=True) for paths in masks]


def _make_element(
    index: int, image: np.ndarray, label: Sequence[int] | np.ndarray, masks: list[np.ndarray]
) -> Batch:
    element = {
        "image": image,
        "label": np.asarray(label, np.uint8),
        "index": np.asarray(index, np.int32),
    }
    return element | ({"masks": np.stack(masks)} if masks else {})


def _refuse_other_classes(root: Path, spec: str, dataset: Dataset) -> None:
    """Refuses a folder whose own description differs from that of the run."""
    if spec or not (root / "dataset.json").is_file():
        return
    own = load_dataset("", root)
    for field in ("classes", "white", "label_notation"):
        if getattr(own, field) != getattr(dataset, field):
            raise InputError(
                f"{root / 'dataset.json'}: {field} is {getattr(own, field)}, but the run has "
                f"{getattr(dataset, field)}: set --config.data.root to the data set of the run"
            )


def _find_masks(
    mask_dirs: Sequence[Path], records: Sequence[PatchRecord], dataset: Dataset, size: int
) -> tuple[list[list[Path]], list[PatchRecord]]:
    """Finds and checks the masks of each folder; adds their checksums to the records."""
    masks: list[list[Path]] = []
    records = list(records)
    labeled = _list_classes(records)
    patches = [Patch(record.name, Path(), None, None) for record in records]
    for folder in mask_dirs:
        with_masks = folders.find_masks(patches, folder)
        masks.append([patch.mask for patch in with_masks if patch.mask is not None])
        checksums, present = patch_checks.check_masks(masks[-1], size, dataset)
        records = [
            record._replace(checksum=f"{record.checksum}{checksum:08x}")
            for record, checksum in zip(records, checksums, strict=True)
        ]
        if missing := sorted(labeled - present):
            tqdm.write(
                f"{folder}: no mask has {_format_classes(missing, dataset)}, though labels do: "
                "that cannot be learned from these masks"
            )
    return masks, records


def _warn_about_labels(records: Sequence[PatchRecord], dataset: Dataset) -> None:
    """Names classes that are in no label, and patches without any class."""
    missing = set(range(dataset.num_classes)) - _list_classes(records)
    if missing:
        tqdm.write(
            f"no training patch has {_format_classes(sorted(missing), dataset)} in its label: that "
            "cannot be learned; add patches that have it, or leave it out of the data set"
        )
    without = [record.name for record in records if "1" not in record.label]
    if without:
        tqdm.write(
            f"{len(without)} training patches have no class in their label, such as {without[0]}: "
            "correct their names if they show tissue"
        )


def _list_classes(records: Sequence[PatchRecord]) -> set[int]:
    labels = {record.label for record in records}
    return {c for label in labels for c, value in enumerate(label.split()) if value == "1"}


def _format_classes(indices: Sequence[int], dataset: Dataset) -> str:
    return ", ".join(dataset.classes[index] for index in indices)
