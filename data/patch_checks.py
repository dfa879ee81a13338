"""Checking all files of a data set before a run, and recording what a run uses."""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import Dataset
from data.folders import Patch
from data.patch_files import read_image, read_mask
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.patch_records import PatchRecord

CHECK_THREADS = 16


def check_patches(patches: Sequence[Patch], size: int | None, dataset: Dataset) -> list[int]:
    """Decodes every file before a run.

    Args:
      patches: whose images and, where they have one, masks are checked.
      size: side in pixels that every image and mask must have, or None for any shape; a mask
        must always have the shape of its image.
      dataset: whose classes the masks hold.

    Returns:
      The checksums, as `compute_checksums`.

    Raises:
      InputError: names the first three bad files and says how many there are in all.
    """
    _refuse_problems(_map(lambda patch: _find_problem(patch, size, dataset), patches))
    return compute_checksums(patches)


def check_masks(paths: Sequence[Path], size: int, dataset: Dataset) -> tuple[list[int], set[int]]:
    """Decodes masks, as `check_patches` does.

    Returns:
      CRC-32 of the bytes of each file; the values, 0..C, that are in any of them.
    """

    def read_classes(path: Path) -> str | set[int]:
        try:
            return set(np.flatnonzero(np.bincount(read_mask(path, dataset, size).ravel())).tolist())
        except InputError as error:
            return str(error)

    results = _map(read_classes, paths)
    _refuse_problems([result if isinstance(result, str) else None for result in results])
    return _map(_compute_checksum, paths), set().union(*results)


def compute_checksums(patches: Sequence[Patch]) -> list[int]:
    """Computes the CRC-32 of each patch's files, the bytes of its image, then of its mask."""
    return _map(lambda patch: _compute_checksum(patch.image, patch.mask), patches)


def make_records(patches: Sequence[Patch], checksums: Sequence[int]) -> list[PatchRecord]:
    """Makes the records by which a run recognizes its patches, from their `compute_checksums`."""
    return [
        PatchRecord(patch.stem, " ".join(map(str, patch.label or ())), f"{checksum:08x}")
        for patch, checksum in zip(patches, checksums, strict=True)
    ]


def _map(function: Callable[[Any], Any], items: Sequence) -> list:
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        return list(pool.map(function, items))


def _compute_checksum(*paths: Path | None) -> int:
    checksum = 0
    for path in filter(None, paths):
        check_regular(path)
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return checksum


def _refuse_problems(results: Sequence[str | None]) -> None:
    problems = [problem for problem in results if problem is not None]
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(
            f"{len(problems)} of {len(results)} patches cannot be used: " + " | ".join(problems[:3])
        )


def _find_problem(patch: Patch, size: int | None, dataset: Dataset) -> str | None:
    """Returns what is wrong with the files of a patch, or None."""
    try:
        shape = read_image(patch.image, size).shape[:2]
        if patch.mask is not None:
            mask_shape = read_mask(patch.mask, dataset, size).shape
            if mask_shape != shape:
                return (
                    f"{patch.mask}: {mask_shape[1]}x{mask_shape[0]} pixels but its image "
                    f"{shape[1]}x{shape[0]}; give both the same size"
                )
    except InputError as error:
        return str(error)
    return None
