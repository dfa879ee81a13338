"""Stores a data set's folder as ArrayRecord, with a TFDS builder that needs no TensorFlow.

Decoding a PNG takes about 2 ms, reading a record of raw pixels a tenth of that; the pixels are the
same.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data.dataset import Dataset, derive_label
from data.folders import (
    SPELLINGS,
    Patch,
    has_masks,
    has_split,
    list_annotated_patches,
    list_labeled_patches,
)
from data.patch_checks import check_patches, compute_checksums, make_records
from data.patch_files import read_image, read_mask
from wsss_jax.errors import Busy, InputError
from wsss_jax.files import atomic_folder, atomic_path, check_writable, hold_lock
from wsss_jax.patch_records import PatchRecord, find_difference, parse_records

_PAUSE = 1.0  # seconds between two looks at whether another process has made the store
CONTENT = "content.json"  # what the store was made from, and the records of its patches


class Patches(tfds.core.GeneratorBasedBuilder):
    """TFDS builder for the patches of a folder; keeps them in the order of their names."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, splits: dict[str, list[Patch]], dataset: Dataset, size: int, **kwargs: object
    ) -> None:
        self._splits, self._dataset, self._size = splits, dataset, size
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._size
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8),
                "label": tfds.features.Tensor(shape=(self._dataset.num_classes,), dtype=np.uint8),
                "mask": tfds.features.Tensor(shape=(None, size), dtype=np.uint8),
                "name": tfds.features.Text(),
            }
        )
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the files are on disk
        return {split: self._generate_examples(patches) for split, patches in self._splits.items()}

    def _generate_examples(self, patches: list[Patch]) -> Iterator[tuple[int, dict]]:
        for index, patch in enumerate(patches):
            if patch.mask is None:
                mask, label = np.zeros((0, self._size), np.uint8), np.array(patch.label, np.uint8)
            else:
                mask = read_mask(patch.mask, self._dataset, self._size, checked=True)
                label = derive_label(mask, self._dataset)
            yield (
                index,
                {
                    "image": read_image(patch.image, self._size, checked=True),
                    "label": label,
                    "mask": mask,
                    "name": patch.stem,
                },
            )


class Store:
    """Random access to one split of a store; picklable, for worker processes.

    An element has `image` (S, S, 3) uint8, `label` (C,) uint8, `mask` (S, S) uint8 or, in the
    training split, (0, S), and `name`, the patch's stem, which is also `names[index]`; `records`
    tell which patches these are.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        records: list[PatchRecord],
        left_out: Collection[str] = (),
    ) -> None:
        self._indices = [i for i, record in enumerate(records) if record.name not in left_out]
        self.records = [records[index] for index in self._indices]
        self.names = [record.name for record in self.records]
        self._folder, self._split = folder, split
        self._records = _open_records(folder, split)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        try:
            record = self._records[self._indices[index]]
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self._folder}: a record of the store is damaged ({str(error).splitlines()[0]}); "
                "remove the folder, it will be built again"
            ) from error
        return {**record, "name": record["name"].decode()}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _records=_open_records(state["_folder"], state["_split"]))


def build(root: str | Path, dataset: Dataset, size: int, out_dir: str | Path) -> None:
    """Makes the store of a data set's folder, or checks that an earlier one fits.

    Args:
      root: the folder, as `folders` reads it; splits that it lacks are left out.
      dataset: its description.
      size: side of every patch in pixels.
      out_dir: folder to make; it is complete or absent.

    Of several processes that come at once, one makes it and the others wait.

    Raises:
      InputError: a bad file, or the store was made from other files, another description or
        another size.
    """
    root, out_dir = Path(root), Path(out_dir)
    splits = _list_splits(root, dataset)
    content = {
        "size": size,
        "classes": list(dataset.classes),
        "present_share": dataset.present_share,
        "files": {split: _compute_fingerprint(patches) for split, patches in splits.items()},
    }
    if not out_dir.exists():  # one that is there may be in a folder that nobody can write to
        check_writable(out_dir.parent)
        with _hold_lock(out_dir):
            if not out_dir.exists():
                _make(out_dir, splits, dataset, content)
                return
    _refuse_other(out_dir, content, splits)


@contextlib.contextmanager
def _hold_lock(out_dir: Path) -> Iterator[None]:
    """Holds the lock of a store that is to be made; waits as long as another process makes it."""
    lock = out_dir.with_name(f".{out_dir.name}.lock")
    with contextlib.ExitStack() as stack:
        waits = False
        while True:
            try:
                stack.enter_context(hold_lock(lock))
                break
            except Busy:
                if not waits:
                    print(f"waiting for another process, which makes {out_dir}", flush=True)
                waits = True
                time.sleep(_PAUSE)
        yield


def _make(out_dir: Path, splits: dict[str, list[Patch]], dataset: Dataset, content: dict) -> None:
    """Checks the patches, and makes the store of them."""
    size = content["size"]
    records = {
        split: make_records(patches, check_patches(patches, size, dataset))
        for split, patches in splits.items()
    }
    with atomic_folder(out_dir) as temporary:
        builder = Patches(splits, dataset, size, data_dir=temporary, file_format="array_record")
        builder.download_and_prepare()
        shutil.rmtree(temporary / "downloads", ignore_errors=True)  # nothing is downloaded
        _write_content(temporary, content, records)


def open_split(out_dir: str | Path, split: str, left_out: Collection[str] = ()) -> Store:
    """Opens one split of a finished store, without the patches of the names in `left_out`.

    Raises:
      InputError: no store there, or it has no such split.
    """
    out_dir = Path(out_dir)
    _, records = _read_content(out_dir)
    if split not in records:
        raise InputError(
            f"{out_dir}: the store has no {split} split but {', '.join(records)}; add the folder "
            "to the data set and remove the store, it will be built again"
        )
    return Store(out_dir, split, records[split], left_out)


def _open_records(folder: Path, split: str):
    prepared = [path for path in folder.glob("patches/*") if not path.name.startswith(".")]
    try:
        (version,) = prepared
        return tfds.builder_from_directory(version).as_data_source(split)
    except MemoryError:  # no fault of the store
        raise
    except Exception as error:  # TFDS, ArrayRecord and protocol buffers raise many kinds
        raise InputError(
            f"{folder}: damaged ({(str(error).splitlines() or [''])[0]}); remove it, it will be "
            "built again"
        ) from error


def _list_splits(root: Path, dataset: Dataset) -> dict[str, list[Patch]]:
    splits: dict[str, list[Patch]] = {}
    for split in SPELLINGS:
        if has_split(root, split):
            annotated = split != "train" and has_masks(root, split)
            read = list_annotated_patches if annotated else list_labeled_patches
            splits[split] = read(root, split, dataset)
    if not splits:
        raise InputError(f"{root}: neither a train nor a val nor a test folder; correct the path")
    return splits


def _compute_fingerprint(patches: list[Patch]) -> str:
    """Hashes names and sizes of all files: copying keeps it, and it is cheap for thousands."""
    digest = hashlib.sha256()
    for patch in patches:
        for path in filter(None, (patch.image, patch.mask)):
            digest.update(f"{path.name}:{path.stat().st_size};".encode())
    return digest.hexdigest()


def _write_content(out_dir: Path, content: dict, records: dict[str, list[PatchRecord]]) -> None:
    with atomic_path(out_dir / CONTENT) as path:
        path.write_text(json.dumps({"content": content, "records": records}), encoding="utf-8")


def _read_content(out_dir: Path) -> tuple[dict, dict[str, list[PatchRecord]]]:
    """Reads what a store was made from, and its records, which version 0.1 did not write."""
    path = out_dir / CONTENT
    if not path.is_file():
        raise InputError(
            f"{out_dir}: no finished ArrayRecord store; remove the folder if it exists"
        )
    try:
        stored = json.loads(path.read_bytes())
        records = {
            split: parse_records(listed) for split, listed in stored.get("records", {}).items()
        }
        return dict(stored["content"]), records
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged ({error}); remove the folder {out_dir}, it will be built again"
        ) from error


def _refuse_other(out_dir: Path, content: dict, splits: dict[str, list[Patch]]) -> None:
    """Refuses a store of other settings or files; adds records to a store of version 0.1."""
    stored, stored_records = _read_content(out_dir)
    for field, value in content.items():
        if field != "files" and stored.get(field) != value:
            raise InputError(
                f"{out_dir}: the store was made with {field} {stored.get(field)}, not {value}; "
                "remove it, it will be built again"
            )
    records = {
        split: make_records(patches, compute_checksums(patches))
        for split, patches in splits.items()
    }
    differences = [
        f"{split}: {difference}"
        for split, before in stored_records.items()
        if (difference := find_difference(before, records.get(split, [])))
    ]
    if differences or stored.get("files") != content["files"]:
        detail = f" ({differences[0]})" if differences else ""
        raise InputError(
            f"{out_dir}: the store was made from other files than the data set has now{detail}; "
            "remove it, it will be built again"
        )
    if not stored_records:
        _write_content(out_dir, content, records)
