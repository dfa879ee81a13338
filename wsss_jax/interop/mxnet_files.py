"""ImageNet weights of ResNet38 from an MXNet parameter file, read without MXNet.

A parameter file is an NDArray list, little-endian: all arrays, then all their names. An array
begins with four bytes that say which of four headers it has; in the oldest header they are the
number of dimensions. A file is not trusted: its claims are checked before memory is taken for them.
"""

import io
import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsss_jax.errors import InputError

MAGIC = struct.pack("<Q", 0x112)  # the first bytes of a parameter file

_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_SPARSE = {1: "row_sparse", 2: "csr"}
_DTYPES = (
    *("float32", "float64", "float16", "uint8", "int32", "int8", "int64"),
    *("bool", "int16", "uint16", "uint32", "uint64", "bfloat16"),
)
# Far more than any network has, so that a hostile file costs little memory apart from its values.
_MAX_ARRAYS = 10_000
_MAX_DIMENSIONS = 32
_MAX_NAME_BYTES = 200

_NORM_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
_BLOCK = r"([2-7])(?:a|b([1-9]))_(branch(?:1|2a|2b[12]))"
_CONV = re.compile(rf"res{_BLOCK}_weight")
_NORM = re.compile(rf"bn{_BLOCK}_({'|'.join(_NORM_LEAVES)})")
_LAST_NORM = re.compile(rf"bn7_({'|'.join(_NORM_LEAVES)})")


class _DamageError(InputError):
    def __init__(self, file: io.BufferedReader, problem: str):
        super().__init__(f"{file.name}: damaged, {problem}; copy or download it again")


def load(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a parameter file by name, without "arg:" or "aux:".

    float16 becomes float32. Kernels stay OIHW.

    Raises:
      InputError: there is no such file, it is damaged, no NDArray list or one without names, or an
        array is sparse, empty or neither float32 nor float16.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            raise InputError(f"{path}: no such file; give a .params file of MXNet")
        with path.open("rb") as file:
            return _read_list(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it readable") from error


def _read_list(file: io.BufferedReader) -> dict[str, np.ndarray]:
    magic, _, count = _unpack(file, "<8sQQ")
    if magic != MAGIC:
        raise InputError(f"{file.name}: not an NDArray list; give a .params file of MXNet")
    if count > _MAX_ARRAYS:
        raise _DamageError(file, f"it claims to hold {count} arrays")
    values = [_read_array(file, index) for index in range(count)]
    (names,) = _unpack(file, "<Q")
    if names == 0:
        raise InputError(f"{file.name}: its arrays have no names; save them as a dict")
    if names != count:
        raise _DamageError(file, f"it has {count} arrays and {names} names")
    arrays: dict[str, np.ndarray] = {}
    for value in values:
        name = _read_name(file)
        if name in arrays:
            raise InputError(f"{file.name}: two arrays are called {name!r}; rename one")
        arrays[name] = value
    if file.read(1):
        raise _DamageError(file, "there is data after its last name")
    return arrays


def _read_array(file: io.BufferedReader, index: int) -> np.ndarray:
    (version,) = _unpack(file, "<I")
    if version in (_V2, _V3):
        (storage,) = _unpack(file, "<i")
        if storage != 0:
            kind = _SPARSE.get(storage, f"of storage type {storage}")
            raise InputError(f"{file.name}: array {index} is {kind}; save it dense")
    if version in (_V1, _V2, _V3):
        (dimensions,) = _unpack(file, "<i")
        code = "q"
    else:
        dimensions, code = version, "I"
    if dimensions > _MAX_DIMENSIONS:
        raise _DamageError(file, f"array {index} has {dimensions} dimensions")
    shape = _unpack(file, f"<{max(dimensions, 0)}{code}")
    # Only the newest header tells a scalar (0 dimensions) from an array without values (-1).
    if dimensions < (0 if version == _V3 else 1) or min(shape, default=1) < 1:
        raise InputError(f"{file.name}: array {index} has no values; save the file without it")

    *_, flag = _unpack(file, "<iii")  # after the device
    dtype = _DTYPES[flag] if 0 <= flag < len(_DTYPES) else f"of dtype {flag}"
    if dtype not in ("float32", "float16"):
        raise InputError(f"{file.name}: array {index} is {dtype}; save the weights as float32")
    stored = np.dtype(dtype).newbyteorder("<")
    left = os.fstat(file.fileno()).st_size - file.tell()
    if math.prod(shape) * stored.itemsize > left:
        raise _DamageError(
            file, f"array {index} of shape {shape} is longer than the rest of the file"
        )
    array = np.empty(shape, stored)
    if file.readinto(array) != array.nbytes:
        raise _DamageError(file, "it ends too early")
    return array.astype(np.float32, copy=False)


def _read_name(file: io.BufferedReader) -> str:
    (length,) = _unpack(file, "<Q")
    if length > _MAX_NAME_BYTES:
        raise _DamageError(file, f"it has a name of {length} bytes")
    (encoded,) = _unpack(file, f"{length}s")
    try:
        name = encoded.decode()
    except UnicodeDecodeError as error:
        raise _DamageError(file, f"the name {encoded!r} is not UTF-8") from error
    return re.sub(r"^(arg|aux):", "", name)


def _unpack(file: io.BufferedReader, layout: str) -> tuple[Any, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise _DamageError(file, "it ends too early")
    return struct.unpack(layout, data)


def to_torch_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames arrays to the PyTorch names of `ResNet38`.

    For the names of `ilsvrc-cls_rna-a1_cls1000_ep-0001.params`. Names that ResNet38 does not have,
    such as those of the ImageNet classifier (`linear1000_weight`), stay as they are.
    """
    return {_to_torch_name(name): value for name, value in arrays.items()}


def _to_torch_name(name: str) -> str:
    if name == "conv1a_weight":
        return "conv1a.weight"
    if match := _LAST_NORM.fullmatch(name):
        return f"bn7.{_NORM_LEAVES[match[1]]}"
    if match := _CONV.fullmatch(name) or _NORM.fullmatch(name):
        stage, index, branch, *leaf = match.groups()
        block = f"b{stage}_{index}" if index else f"b{stage}"
        if leaf:
            return f"{block}.bn_{branch}.{_NORM_LEAVES[leaf[0]]}"
        return f"{block}.conv_{branch}.weight"
    return name
