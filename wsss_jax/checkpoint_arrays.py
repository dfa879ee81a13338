"""Checksums and shapes of the arrays in checkpoints; Orbax does not notice damaged values."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import numpy as np

from wsss_jax import parallel


def compute_checksums(tree: Any) -> dict[str, str]:
    """Returns name -> dtype and CRC-32 of each array of a tree, such as "float32 89abcdef"."""
    return {
        name: f"{array.dtype} {zlib.crc32(array.ravel().view(np.uint8)):08x}"
        for name, array in _iterate_arrays(tree)
    }


def check_arrays(trees: Mapping[str, Any], checksums: Any) -> None:
    """Compares arrays with the checksums under which they were saved.

    Without checksums, as in checkpoints of version 0.1, and for arrays that now have another dtype
    than in the file, only values that are not finite are recognized as damage.

    Args:
      trees: name of an item of a checkpoint -> its arrays.
      checksums: item -> its `compute_checksums`, or None.

    Raises:
      ValueError: in all processes, if one of them finds damage.
    """
    problem = None
    for item, tree in trees.items():
        arrays, present = dict(_iterate_arrays(tree)), compute_checksums(tree)
        saved = dict.fromkeys(present, "") if checksums is None else checksums[item]
        for name in present | saved:
            now, before = present.get(name, ""), saved.get(name, "none")
            if now.split()[:1] == before.split()[:1]:
                is_intact = now == before
            else:
                is_intact = before != "none" and name in arrays and _is_finite(name, arrays[name])
            if not is_intact:
                problem = problem or f"{item}: {name} is not what was saved"
    if parallel.gather(np.array(problem is not None)).any():
        raise ValueError(problem or "another process found a damaged array")


def get_shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of each array of a tree."""
    return {k: tuple(v.shape) for k, v in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def make_abstract(tree: Any) -> Any:
    """Returns the shapes and dtypes of a tree, to be restored to all devices."""
    sharding = parallel.global_sharding()  # whatever devices saved it
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _iterate_arrays(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.ascontiguousarray(leaf)


def _is_finite(name: str, array: np.ndarray) -> bool:
    if name.startswith("sums/") or not jax.dtypes.issubdtype(array.dtype, np.inexact):
        return True  # sums of metrics may be undefined
    return bool(np.isfinite(array).all())
