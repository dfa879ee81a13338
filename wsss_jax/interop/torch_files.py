"""State dicts in PyTorch's files, read and written without PyTorch.

A file is not trusted: nothing in it is executed, and what it claims of its tensors is checked
against its size before memory is taken for them.
"""

import io
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.interop import torch_pickle, torch_zip
from wsss_jax.interop.torch_bytes import (
    RESAVE,
    ContentsError,
    DamageError,
    check_left,
    quote,
    read_bytes,
)
from wsss_jax.interop.torch_pickle import BFLOAT16, DTYPES, Tensor

_MAX_DIMENSIONS = 8
_MAX_NAME = 300  # characters; longer ones would be copied for every tensor of a container
_MAX_DEPTH = 8  # of containers in each other
_ARRAY_BYTES = 256  # of an array object, apart from its elements

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")

# All names of tensors in a file -> those to read.
Choose = Callable[[Collection[str]], Collection[str]]


class _Contents(NamedTuple):
    """The chosen tensors of a file by name, and the bytes of their storages by key."""

    tensors: dict[str, Tensor]
    data: dict[str, np.ndarray]


def load(path: Path, choose: Choose = lambda names: names) -> dict[str, np.ndarray]:
    """Reads the tensors in a file that `torch.save` wrote, in the zip or the legacy format.

    Contiguous tensors that share a storage share memory here too.

    Args:
      path: of the file, of up to 4 GiB; it is not trusted.
      choose: which tensors to read; by default all.

    Returns:
      name -> array in C order, in the order of the file; bfloat16 becomes float32. The names
      of containers come before the tensor's: "state_dict.fc8.weight", "optimizer.0.step".

    Raises:
      InputError: there is no such file, it is damaged, or it holds anything but plain weights.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path")
    try:
        with path.open("rb") as file:
            tensors, data = _read_contents(file, choose)
            return {
                name: _make_array(tensor, data[tensor.storage.key])
                for name, tensor in tensors.items()
            }
    except ContentsError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def _read_contents(file: io.BufferedReader, choose: Choose) -> _Contents:
    head = file.read(torch_pickle.MAX_BYTES)
    if head.startswith(torch_zip.SIGNATURE):
        return _read_zip(file, choose)
    if _LEGACY_MAGIC in head[:32]:
        return _read_legacy(file, io.BytesIO(head), choose)
    if head[257:262] == b"ustar":
        raise ContentsError(f"is in the format of PyTorch 0.1; load it with PyTorch and {RESAVE}")
    raise ContentsError("is not a file of torch.save; give a checkpoint of PyTorch")


def _read_zip(file: io.BufferedReader, choose: Choose) -> _Contents:
    entries = torch_zip.read_directory(file)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ContentsError(f"is a zip file, but not one of torch.save; {RESAVE}")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise ContentsError(f"is a TorchScript archive; load it with torch.jit.load and {RESAVE}")
    order = entries.get(f"{root}byteorder")
    if order and torch_zip.read_entry(file, order).tobytes() != b"little":
        raise ContentsError(f"was written on a big-endian machine; on a usual one {RESAVE}")
    pickled = entries[f"{root}data.pkl"]
    if pickled.size > torch_pickle.MAX_BYTES:
        raise ContentsError(f"holds far more than weights; {RESAVE}")
    value, _ = torch_pickle.unpickle(io.BytesIO(torch_zip.read_entry(file, pickled)))
    tensors = _choose_tensors(file, value, choose)
    data = {}
    for storage in dict.fromkeys(tensor.storage for tensor in tensors.values()):
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None or entry.size != storage.numel * DTYPES[storage.kind].itemsize:
            raise DamageError(f"storage {quote(storage.key)} is missing or of another size")
        data[storage.key] = torch_zip.read_entry(file, entry)
    return _Contents(tensors, data)


def _read_legacy(file: io.BufferedReader, head: io.BytesIO, choose: Choose) -> _Contents:
    for _ in ("magic number", "protocol version", "system information"):
        torch_pickle.unpickle(head)
    value, storages = torch_pickle.unpickle(head)
    keys, _ = torch_pickle.unpickle(head)
    tensors = _choose_tensors(file, value, choose)
    missing = {tensor.storage.key for tensor in tensors.values()}
    data = {}
    file.seek(head.tell())
    for key in keys if isinstance(keys, list) else ():
        storage = storages.pop(key, None) if isinstance(key, str) else None
        numel = int.from_bytes(read_bytes(file, 8).tobytes(), "little")
        if storage is None or numel != storage.numel:
            raise DamageError("the storages are not those that the tensors name")
        nbytes = numel * DTYPES[storage.kind].itemsize
        if key in missing:
            data[key] = read_bytes(file, nbytes)
            missing.remove(key)
        else:
            check_left(file, nbytes)
            file.seek(nbytes, os.SEEK_CUR)
    if missing:
        raise DamageError(f"storage {quote(min(missing))} is missing")
    return _Contents(tensors, data)


def _choose_tensors(file: io.BufferedReader, value: Any, choose: Choose) -> dict[str, Tensor]:
    """Names the tensors in the value of a pickle and returns the chosen ones, checked."""
    tensors = _list_tensors(value)
    if not tensors:
        raise ContentsError(f"holds no state dict; {RESAVE}")
    chosen = {name: tensors[name] for name in choose(tensors.keys())}
    _check_sizes(chosen, os.fstat(file.fileno()).st_size)
    return chosen


def _list_tensors(value: Any) -> dict[str, Tensor]:
    """Returns the tensors in a container and in those within it, each container once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", value, 0)]
    while waiting:
        prefix, container, depth = waiting.pop()
        if isinstance(container, dict):
            items = list(container.items())
        elif isinstance(container, list | tuple) and not isinstance(container, Tensor):
            items = list(enumerate(container))
        else:
            continue
        if depth > _MAX_DEPTH or id(container) in seen:
            continue
        seen.add(id(container))
        inner = []
        for key, item in items:
            name = f"{prefix}{key}"
            if len(name) > _MAX_NAME:
                raise DamageError(f"a name of over {_MAX_NAME} characters")
            if not isinstance(item, Tensor):
                inner.append((f"{name}.", item, depth + 1))
            elif tensors.setdefault(name, item) is not item:
                raise DamageError(f"two tensors are called {quote(name)}")
        waiting += reversed(inner)
    return tensors


def _check_sizes(tensors: Mapping[str, Tensor], file_size: int) -> None:
    """Refuses tensors that leave their storage, or that take far more memory than the file."""
    room = 2 * file_size + 2**20
    for name, (storage, start, shape, strides) in tensors.items():
        if not len(shape) == len(strides) <= _MAX_DIMENSIONS or any(
            type(number) is not int or number < 0
            for number in (storage.numel, start, *shape, *strides)
        ):
            raise DamageError(f"entry {quote(name)} has an impossible shape")
        numel = math.prod(shape)
        last = start + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if numel > storage.numel or (numel and last >= storage.numel):
            raise DamageError(f"entry {quote(name)} is larger than its storage")
        itemsize = 4 if storage.kind == BFLOAT16 else DTYPES[storage.kind].itemsize
        room -= math.prod(max(n, 1) for n in shape) * itemsize + _ARRAY_BYTES
        if room < 0:
            raise DamageError("its tensors are larger than the file")


def _make_array(tensor: Tensor, data: np.ndarray) -> np.ndarray:
    """Returns a checked tensor as an array, made of the bytes of its storage."""
    storage, start, shape, strides = tensor
    dtype = DTYPES[storage.kind]
    if 0 in shape:
        return np.empty(shape, np.float32 if storage.kind == BFLOAT16 else dtype)
    # The stride of an axis of length 1 means nothing and may be anything.
    steps = [dtype.itemsize * step if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]
    array = np.ndarray(shape, dtype, data, start * dtype.itemsize, steps)
    if storage.kind == BFLOAT16:
        bits = array.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)
    if dtype.kind == "b":  # in NumPy every byte of it must be 0 or 1
        return np.asarray(array.view(np.uint8) != 0, order="C")
    return np.asarray(array, order="C")


def save(state_dict: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a state dict that `torch.load` of PyTorch 1.6 and later reads, `weights_only` too.

    Args:
      state_dict: name -> array of bool, uint8, int8 to int64 or float16 to float64.
      path: of the file; parents are created.

    Raises:
      InputError: an array of another type.
    """
    for name, array in state_dict.items():
        if array.dtype not in torch_pickle.KINDS:
            raise InputError(f"{path}: entry {name!r} is {array.dtype}; convert it to float32")

    def entries():
        yield "archive/data.pkl", torch_pickle.pickle_state_dict(state_dict)
        yield "archive/byteorder", b"little"
        for key, array in enumerate(state_dict.values()):
            yield f"archive/data/{key}", array.ravel().view(np.uint8)
        yield "archive/version", b"3\n"

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch_zip.write_archive(file, entries())
