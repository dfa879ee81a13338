"""Patches to batches: Grain over a folder or an ArrayRecord store; augmentation on the device."""

import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import cv2
import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from grain._src.python.dataset.transformations import process_prefetch
from tqdm import tqdm

from data import folders
from data.dataset import Dataset, label_from_mask, load_dataset
from data.folders import Patch
from wsss_jax import parallel, signals
from wsss_jax import workers as worker_processes
from wsss_jax.errors import InputError
from wsss_jax.patch_records import PatchRecord

if TYPE_CHECKING:
    from data import patches_tfds

# Grain gives a process so many seconds to end, which one that loads, or has a batch to hand over,
# does not do before: by itself 25, more than most who stop a run wait before they kill it.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1
Batch = dict[str, np.ndarray]
_RECIPROCAL_HIGH = np.float32(round(2**22 / 255) / 2**22)  # 1 / 255 to 15 bits
_RECIPROCAL_LOW = np.float32(1 / 255 - float(_RECIPROCAL_HIGH))


class Source(Protocol):
    """Random access to patches.

    An element is `image` (S, S, 3) uint8, `label` (C,) uint8, `index` () int32 and, where there
    are masks, `masks` (L, S, S) uint8. `names[index]` is the patch's stem; `records` say which
    patches these are, for the run that uses them.
    """

    names: Sequence[str]
    records: Sequence[PatchRecord]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


class FolderSource:
    """A `Source` of PNG files; see `folders`."""

    def __init__(
        self,
        patches: Sequence[Patch],
        dataset: Dataset,
        size: int,
        masks: Sequence[Sequence[Path]] = (),
        *,
        resize: bool = False,
        records: Sequence[PatchRecord] = (),
    ):
        """Reads `patches` of `size` pixels.

        Args:
          patches: with a label, a mask, or both; found whole by `folders.check_patches`.
          dataset: what they are of.
          size: S, the side in pixels.
          masks: L times a file of S pixels for every patch; none: the patches' own masks.
          resize: brings images (area or bilinear) and their own masks (nearest) to S.
          records: of the patches.
        """
        self.names = [patch.stem for patch in patches]
        self.records = records
        self._patches, self._dataset, self._size = patches, dataset, size
        self._masks, self._resize = masks, resize

    def __len__(self) -> int:
        return len(self._patches)

    def __getitem__(self, index: int) -> Batch:
        patch = self._patches[index]
        own_size = None if self._resize else self._size
        image = folders.read_image(patch.image, own_size, checked=True)
        image = self._fitted(image, cv2.INTER_AREA)
        masks = [
            folders.read_mask(paths[index], self._dataset, self._size, checked=True)
            for paths in self._masks
        ]
        if not masks and patch.mask is not None:
            mask = folders.read_mask(patch.mask, self._dataset, own_size, checked=True)
            masks = [self._fitted(mask, cv2.INTER_NEAREST)]
        label = patch.label if patch.label is not None else label_from_mask(masks[0], self._dataset)
        return _element(index, image, label, masks)

    def _fitted(self, array: np.ndarray, interpolation: int) -> np.ndarray:
        if array.shape[:2] == (self._size, self._size):
            return array
        return cv2.resize(array, (self._size, self._size), interpolation=interpolation)


class StoreSource:
    """A `Source` of an ArrayRecord store; masks of other folders are read as files."""

    def __init__(
        self,
        store: "patches_tfds.Store",
        dataset: Dataset,
        size: int,
        masks: Sequence[Sequence[Path]] = (),
        *,
        records: Sequence[PatchRecord] = (),
    ):
        self.names, self.records = store.names, records
        self._store, self._dataset, self._size = store, dataset, size
        self._masks = masks

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Batch:
        record = self._store[index]
        masks = [
            folders.read_mask(paths[index], self._dataset, self._size, checked=True)
            for paths in self._masks
        ]
        if not masks and record["mask"].size:
            masks = [record["mask"]]
        return _element(index, record["image"], record["label"], masks)


def _element(index: int, image: np.ndarray, label: Sequence[int], masks: list) -> Batch:
    element = {
        "image": image,
        "label": np.asarray(label, np.uint8),
        "index": np.int32(index),
    }
    return element | ({"masks": np.stack(masks)} if masks else {})


def open_source(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    split: Literal["train", "val", "test"],
    mask_dirs: Sequence[Path] = (),
) -> Source:
    """Opens a split of the data set of `config.data`, every file of it checked.

    Args:
      config: the fields `config.data`.
      dataset: its description.
      split: training patches carry labels in their names; those of "val" and "test" true masks, or
        labels where the split has no masks.
      mask_dirs: folders of (pseudo) masks, `<stem>.png`, in the place of true ones.

    Raises:
      InputError: a folder or file that is missing or bad.
    """
    root, size = Path(config.root), config.patch_size
    if not root.is_dir():
        raise InputError(f"config.data.root: there is no folder {root}; data/README.md says more")
    _refuse_other_classes(root, config.dataset, dataset)
    if config.source == "tfds":
        # Here, since tensorflow-datasets takes a while to load and few runs need it.
        from data import patches_tfds

        if config.resize:
            raise InputError("config.data.resize works with config.data.source=folder only")
        store_dir = root / "arrayrecord"
        if parallel.is_first():
            patches_tfds.build(root, dataset, size, store_dir)
        parallel.wait_for_all("built the store")
        store = patches_tfds.open_split(store_dir, split)
        if split == "train":
            _say_what_labels_lack(store.records, dataset)
        masks, records = _checked_masks(mask_dirs, store.records, dataset, size)
        return StoreSource(store, dataset, size, masks, records=records)
    if split == "train" or not folders.has_masks(root, split):
        patches = folders.labelled_patches(root, split, dataset)
    else:
        patches = folders.annotated_patches(root, split, dataset)
    checksums = folders.check_patches(patches, None if config.resize else size, dataset)
    records = folders.patch_records(patches, checksums)
    if split == "train":
        _say_what_labels_lack(records, dataset)
    masks, records = _checked_masks(mask_dirs, records, dataset, size)
    return FolderSource(patches, dataset, size, masks, resize=config.resize, records=records)


def _refuse_other_classes(root: Path, spec: str, dataset: Dataset) -> None:
    """Refuses a folder whose own description does not say what the run's says."""
    if spec or not (root / "dataset.json").is_file():
        return
    own = load_dataset("", root)
    for field in ("classes", "white", "label_notation"):
        if getattr(own, field) != getattr(dataset, field):
            raise InputError(
                f"{root / 'dataset.json'}: {field} is {getattr(own, field)}, but the run knows "
                f"{getattr(dataset, field)}: set --config.data.root to the data set of the run"
            )


def _checked_masks(
    mask_dirs: Sequence[Path], records: Sequence[PatchRecord], dataset: Dataset, size: int
) -> tuple[list[list[Path]], list[PatchRecord]]:
    """The masks of each folder, and the records with their checksums added."""
    masks, records = [], list(records)
    labelled = _classes_of_labels(records)
    patches = [Patch(record.name, Path(), None, None) for record in records]
    for folder in mask_dirs:
        masks.append([patch.mask for patch in folders.masks_for(patches, folder)])
        checksums, present = folders.check_masks(masks[-1], size, dataset)
        records = [
            record._replace(checksum=f"{record.checksum}{checksum:08x}")
            for record, checksum in zip(records, checksums, strict=True)
        ]
        if missing := sorted(labelled - present):
            tqdm.write(
                f"{folder}: no mask has {_class_names(missing, dataset)}, though labels do: "
                "that cannot be learned from these masks"
            )
    return masks, records


def _say_what_labels_lack(records: Sequence[PatchRecord], dataset: Dataset) -> None:
    missing = set(range(dataset.num_classes)) - _classes_of_labels(records)
    if missing:
        tqdm.write(
            f"no training patch has {_class_names(sorted(missing), dataset)} in its label: that "
            "cannot be learned; add patches that have it, or leave it out of the data set"
        )
    without = [record.name for record in records if "1" not in record.label]
    if without:
        tqdm.write(
            f"{len(without)} training patches have no class in their label, such as {without[0]}: "
            "correct their names if they show tissue"
        )


def _classes_of_labels(records: Sequence[PatchRecord]) -> set[int]:
    labels = {record.label for record in records}
    return {c for label in labels for c, value in enumerate(label.split()) if value == "1"}


def _class_names(indices: Sequence[int], dataset: Dataset) -> str:
    return ", ".join(dataset.classes[index] for index in indices)


def batches(
    source: Sequence[Batch],
    batch_size: int,
    *,
    workers: int,
    seed: int | None = None,
    epochs: int = 1,
    drop_last: bool = False,
    start: int = 0,
    shared: bool = True,
) -> Generator[Batch, None, None]:
    """Batches of a source, in an order that follows from (seed, epoch) alone.

    A last batch that is not full is filled up with its last example at `weight` 0, so that all
    batches have one shape.

    Args:
      source: random access to elements.
      batch_size: examples in a batch.
      workers: processes that decode; 0 reads in threads of this process.
      seed: shuffles each epoch anew; None keeps the order of the source.
      epochs: how many.
      drop_last: leaves the last batch of an epoch out if it is not full.
      start: the number of batches, over all epochs, to leave out at the start.
      shared: each process gets, and reads, its own rows of every batch; False: all of them.

    Yields:
      the arrays of the elements stacked; `weight` (B,) float32: 1, or 0 for filling; `position`
      (B,) int32: the rows of the global batch that they are.

    Raises:
      InputError: a worker process died.
    """

    own = np.arange(batch_size, dtype=np.int32)
    own = own[parallel.own_rows(batch_size)] if shared else own

    def read(indices: Sequence[int]) -> Batch:
        count = len(indices)
        rows = [source[indices[min(i, count - 1)]] for i in own]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return batch | {"weight": (own < count).astype(np.float32), "position": own}

    dataset = grain.MapDataset.range(len(source))
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    dataset = dataset.batch(batch_size, drop_remainder=drop_last, batch_fn=list)
    dataset = dataset.repeat(epochs)[start:].map(read)
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        # Batches come through pipes: shared memory is small in containers, and outlives a kill.
        iterable = grain.experimental.WithOptionsIterDataset(
            iterable, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        )
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=worker_processes.begin,
        )
    iterator = iter(iterable)
    try:
        # With the first batch all processes have been started. Those who stop a run may tell all of
        # its processes, but it needs them until its state is saved.
        stopping = signals.STOPPING if workers else ()
        with worker_processes.out_of_reach(*stopping):
            first = next(iterator, None)
        if first is not None:
            yield first
            yield from iterator
    except RuntimeError as error:
        if "Worker process" not in str(error):
            raise
        raise InputError(
            f"a process that decodes patches died ({str(error).splitlines()[0]}): give the same "
            "command again, with fewer --config.data.workers if memory was short"
        ) from error
    finally:
        iterator.close()


def each_patch(
    source: Sequence[Batch],
    batch_size: int,
    function: Callable[[Batch], dict[str, np.ndarray]],
    *,
    workers: int = 0,
) -> dict[str, np.ndarray]:
    """What a function finds for the patches of a source, which all processes share.

    Args:
      source: random access to elements.
      batch_size: examples in a batch, over all processes.
      function: batch -> named arrays (B, ...), of the process's rows.
      workers: as of `batches`.

    Returns:
      The arrays (N, ...) of all N patches in the order of the source, in every process.
    """
    found = []
    for batch in batches(source, batch_size, workers=workers):
        found.append({**function(batch), "weight": batch["weight"]})
    stacked = {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}
    # (processes, batches, rows, ...) -> (batches, processes, rows, ...), then one axis of patches
    whole = {
        name: np.moveaxis(array, 0, 1).reshape(-1, *array.shape[3:])
        for name, array in parallel.gather(stacked).items()
    }
    real = whole.pop("weight") > 0
    return {name: array[real] for name, array in whole.items()}


def steps_per_epoch(examples: int, batch_size: int, drop_last: bool) -> int:
    """How many batches `batches` yields in an epoch."""
    return examples // batch_size if drop_last else -(-examples // batch_size)


def scaled(image: jax.Array, model: ml_collections.ConfigDict) -> jax.Array:
    """uint8 (B, H, W, 3) -> float32 (x / 255 - mean) / std with `config.model`'s mean and std."""
    mean, std = jnp.asarray(model.mean), jnp.asarray(model.std)
    x = image.astype(jnp.float32)
    # XLA makes x * (1 / 255) of a division, which is off by a rounding for half of all values. In
    # two parts, the first product exact, it is what division gives.
    x = x * _RECIPROCAL_HIGH + x * _RECIPROCAL_LOW
    return (x - mean) / std


def augment(
    rng: jax.Array,
    image: jax.Array,
    masks: jax.Array | None,
    config: ml_collections.ConfigDict,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """Flips and blurs each example by its own dice.

    Args:
      rng: key of the step, the same on all devices.
      image: (B, H, W, 3) uint8.
      masks: (B, L, H, W) uint8 flipped along, or None.
      config: the fields `config.augment`.
      position: (B,) of the examples in the global batch, so that the dice of an example do not
        depend on the device that holds it.

    Returns:
      image (B, H, W, 3) uint8, masks.
    """

    def one(key: jax.Array, image: jax.Array, masks: jax.Array | None):
        horizontal, vertical, blur, sigma = jax.random.uniform(key, (4,))
        for axis, dice, probability in (
            (1, horizontal, config.flip_horizontal),
            (0, vertical, config.flip_vertical),
        ):
            flip = dice < probability
            image = jnp.where(flip, jnp.flip(image, axis), image)
            if masks is not None:
                masks = jnp.where(flip, jnp.flip(masks, axis + 1), masks)
        if config.blur > 0:
            blurred = gaussian_blur(image, sigma * config.blur_radius)
            image = jnp.where(blur < config.blur, blurred, image)
        return image, masks

    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, position)
    return jax.vmap(one)(keys, image, masks)


def gaussian_blur(image: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Blurs (H, W, C) uint8 as PIL's `GaussianBlur(sigma)` does, for sigma up to 1.4 pixels.

    Along each axis three box filters [w, 1, w] / (1 + 2 w) whose variances add up to sigma ** 2;
    the border is repeated.
    """
    variance = jnp.square(sigma) / 3
    side = variance / (2 * (1 - variance))
    x = image.astype(jnp.float32)
    for axis in (0, 1):
        size = x.shape[axis]
        padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        for _ in range(3):
            padded = jnp.pad(x, padding, mode="edge")
            before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
            after = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
            x = (x + side * (before + after)) / (1 + 2 * side)
    return jnp.round(x).astype(jnp.uint8)
