"""State dicts in PyTorch's files, read and written without PyTorch.

A file is not trusted. Its pickle runs on a machine of few opcodes that builds plain containers and
descriptions of tensors; a name the pickle asks for is looked up in a table and never imported.
What the descriptions claim is checked against the file before memory is taken for it.
"""

import io
import itertools
import math
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

_BFLOAT16 = "torch.BFloat16Storage"
_DTYPES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    _BFLOAT16: np.dtype("<u2"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_KINDS = {dtype: kind for kind, dtype in _DTYPES.items() if kind != _BFLOAT16}
# What training programs keep beside the weights, such as the best score or their settings: never
# made, read as None, or as an empty dictionary where entries follow.
_IGNORED = frozenset(
    {
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.set",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib.PureWindowsPath",
        "torch.device",
    }
)
_IGNORED_MAPPINGS = frozenset(
    {
        "collections.defaultdict",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning_utilities.core.rank_zero.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    }
)
_GLOBALS = frozenset(
    {
        *_DTYPES,
        *_IGNORED,
        *_IGNORED_MAPPINGS,
        *(f"builtins.{name}" for name in ("dict", "float", "int", "list")),  # of a defaultdict
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch.nn.parameter.Parameter",
    }
)

# How many values an opcode takes from the stack, and those that take all down to the last mark.
_TAKEN = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "APPEND": 1,
    "SETITEM": 2,
    "STACK_GLOBAL": 2,
    "REDUCE": 2,
    "NEWOBJ": 2,
    "BUILD": 1,
    "BINPERSID": 1,
    "STOP": 1,
}
_TAKEN_TO_MARK = frozenset({"TUPLE", "APPENDS", "SETITEMS"})

# DeepLabV3+ with its optimizer takes 32 000 steps and 110 KB of pickle. A step takes up to 100
# bytes of memory, a byte of text up to four: whatever the pickle, under 25 MB.
_MAX_STEPS = 150_000
_MAX_PARSED = 2**21
_MAX_DIMENSIONS = 8
_MAX_NAME = 300  # characters; longer ones would be copied for every tensor of a container
_MAX_DEPTH = 8  # of containers in each other
_ARRAY_BYTES = 256  # of an array object, apart from its elements

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_ENTRY_SIGNATURE = b"PK\x03\x04"
_ENTRY_HEADER = struct.Struct("<4s22x2H")
_DIRECTORY_ENTRY = struct.Struct("<4s6H3I5H2I")
_DIRECTORY_END = struct.Struct("<4s4H2IH")
_ALIGNMENT = 64  # of a storage in the file, in bytes, as PyTorch has it

_RESAVE = "save the weights alone, torch.save(model.state_dict(), path), and give that file"


class _Refusal(Exception):
    """Why a file is not read, and the remedy: the message without the file's name."""


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    kind: str
    numel: int


class _View(NamedTuple):
    storage: _Storage
    start: int


class _Tensor(NamedTuple):
    """What a file claims of a tensor; start and strides count elements. Nothing is checked yet."""

    storage: _Storage
    start: int
    shape: tuple
    strides: tuple


class _Entry(NamedTuple):
    offset: int
    size: int
    crc: int


# All names of tensors in a file -> those to read.
Choose = Callable[[Collection[str]], Collection[str]]


def load(path: Path, choose: Choose = lambda names: names) -> dict[str, np.ndarray]:
    """The tensors in a file that `torch.save` wrote, in the zip or the legacy format.

    Contiguous tensors that share a storage share memory here too.

    Args:
      path: of the file, of up to 4 GiB; it is not trusted.
      choose: which tensors to read; by default all.

    Returns:
      name -> array in C order, in the order of the file; bfloat16 becomes float32. Names of tensors
      in containers follow those of the containers: "state_dict.fc8.weight", "optimizer.0.step".

    Raises:
      InputError: there is no such file, it is damaged, or it holds anything but plain weights.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path")
    try:
        with path.open("rb") as file:
            return _load(file, choose)
    except _Refusal as refusal:
        raise InputError(f"{path}: {refusal}") from refusal
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def _load(file: BinaryIO, choose: Choose) -> dict[str, np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    head = file.read(_MAX_PARSED)
    if head.startswith(_ENTRY_SIGNATURE):
        tensors, data = _load_zip(file, size, choose)
    elif _LEGACY_MAGIC in head[:32]:
        tensors, data = _load_legacy(file, size, head, choose)
    elif head[257:262] == b"ustar":
        raise _Refusal(f"is in the format of PyTorch 0.1; load it with PyTorch and {_RESAVE}")
    else:
        raise _Refusal("is not a file of torch.save; give a checkpoint of PyTorch")
    return {name: _array(tensor, data[tensor.storage.key]) for name, tensor in tensors.items()}


def _load_zip(
    file: BinaryIO, size: int, choose: Choose
) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    entries = _zip_entries(file, size)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise _Refusal(f"is a zip file, but not one of torch.save; {_RESAVE}")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise _Refusal(f"is a TorchScript archive; load it with torch.jit.load and {_RESAVE}")
    order = entries.get(f"{root}byteorder")
    if order and _read_entry(file, size, order).tobytes() != b"little":
        raise _Refusal(f"was written on a big-endian machine; on a usual one {_RESAVE}")
    pickled = entries[f"{root}data.pkl"]
    if pickled.size > _MAX_PARSED:
        raise _Refusal(f"holds far more than weights; {_RESAVE}")
    held, _ = _unpickle(io.BytesIO(_read_entry(file, size, pickled)))
    tensors = _checked(_chosen(held, choose), size)
    data = {}
    for storage in dict.fromkeys(tensor.storage for tensor in tensors.values()):
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None or entry.size != storage.numel * _DTYPES[storage.kind].itemsize:
            raise _damaged(f"storage {_shown(storage.key)} is missing or of another size")
        data[storage.key] = _read_entry(file, size, entry)
    return tensors, data


def _zip_entries(file: BinaryIO, size: int) -> dict[str, _Entry]:
    """Entries by name; together they are no larger than the file."""
    file.seek(max(size - _DIRECTORY_END.size, 0))
    signature, *_, length, position, _ = _DIRECTORY_END.unpack(
        _read(file, size, _DIRECTORY_END.size)
    )
    if signature != b"PK\x05\x06":
        raise _damaged("the end of the zip file is missing")
    if length > _MAX_PARSED:
        raise _damaged("the directory of the zip file is too large")
    file.seek(position)
    directory = file.read(length)
    entries, position, total = {}, 0, 0
    while position < length:
        try:
            fields = _DIRECTORY_ENTRY.unpack_from(directory, position)
        except struct.error as error:
            raise _damaged("the directory of the zip file breaks off") from error
        signature, _, _, flags, method, _, _, crc, packed, unpacked, *lengths = fields[:13]
        position += _DIRECTORY_ENTRY.size
        name = directory[position : position + lengths[0]].decode(errors="replace")
        position += sum(lengths)
        total += unpacked
        if signature != b"PK\x01\x02" or name in entries or total > size:
            raise _damaged("the directory of the zip file contradicts itself")
        if flags & 1 or method or packed != unpacked:
            raise _Refusal(f"entry {_shown(name)} is compressed or encrypted; {_RESAVE}")
        entries[name] = _Entry(fields[-1], unpacked, crc)
    return entries


def _read_entry(file: BinaryIO, size: int, entry: _Entry) -> np.ndarray:
    file.seek(entry.offset)
    signature, name_length, extra_length = _ENTRY_HEADER.unpack(
        _read(file, size, _ENTRY_HEADER.size)
    )
    if signature != _ENTRY_SIGNATURE:
        raise _damaged("an entry of the zip file is not where it should be")
    file.seek(name_length + extra_length, os.SEEK_CUR)
    data = _read(file, size, entry.size)
    if zlib.crc32(data) != entry.crc:
        raise _damaged("a checksum does not match")
    return data


def _load_legacy(
    file: BinaryIO, size: int, head: bytes, choose: Choose
) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    stream = io.BytesIO(head)
    for _ in ("magic number", "protocol version", "system information"):
        _unpickle(stream)
    held, storages = _unpickle(stream)
    keys, _ = _unpickle(stream)
    tensors = _checked(_chosen(held, choose), size)
    missing = {tensor.storage.key for tensor in tensors.values()}
    data = {}
    file.seek(stream.tell())
    for key in keys if isinstance(keys, list) else ():
        storage = storages.pop(key, None) if isinstance(key, str) else None
        numel = int.from_bytes(_read(file, size, 8).tobytes(), "little")
        if storage is None or numel != storage.numel:
            raise _damaged("the storages are not those that the tensors name")
        nbytes = numel * _DTYPES[storage.kind].itemsize
        if key in missing:
            data[key] = _read(file, size, nbytes)
            missing.remove(key)
        else:
            _refuse_short(file, size, nbytes)
            file.seek(nbytes, os.SEEK_CUR)
    if missing:
        raise _damaged(f"storage {_shown(min(missing))} is missing")
    return tensors, data


def _read(file: BinaryIO, size: int, nbytes: int) -> np.ndarray:
    """The next bytes of the file of `size` bytes, uint8."""
    _refuse_short(file, size, nbytes)
    data = np.empty(nbytes, np.uint8)
    if file.readinto(data) != nbytes:
        raise _damaged("data is missing")
    return data


def _refuse_short(file: BinaryIO, size: int, nbytes: int) -> None:
    if nbytes > size - file.tell():
        raise _damaged("data is missing")


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """The object of the next pickle in the stream, and all storages it names, by key."""
    try:
        return _run(stream)
    except (IndexError, KeyError, ValueError) as error:
        raise _damaged("its pickle makes no sense") from error


def _run(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}
    for opcode, argument, _ in itertools.islice(pickletools.genops(stream), _MAX_STEPS):
        if opcode.name in _TAKEN:
            taken = _take(stack, len(stack) - _TAKEN[opcode.name])
        elif opcode.name in _TAKEN_TO_MARK:
            taken = _take(stack, marks.pop())
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "BUILD":
                pass  # the attributes of an OrderedDict, the fields of a numpy.dtype: not needed
            case "STOP":
                return taken[0], storages
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(taken))
            case "APPEND" | "APPENDS":
                _extend(stack[-1], taken)
            case "SETITEM" | "SETITEMS":
                _set_items(stack[-1], taken)
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_global(*taken))
            case "REDUCE" | "NEWOBJ":
                stack.append(_reduce(*taken))
            case "BINPERSID":
                view = _view(taken[0])
                if storages.setdefault(view.storage.key, view.storage) != view.storage:
                    raise ValueError("two storages of one key")
                stack.append(view)
            case _:
                raise _Refusal(f"asks for {opcode.name} in its pickle; {_RESAVE}")
    raise _Refusal(f"holds far more than weights; {_RESAVE}")


def _take(stack: list[Any], start: int) -> list[Any]:
    if not 0 <= start <= len(stack):
        raise IndexError("stack underflow")
    taken = stack[start:]
    del stack[start:]
    return taken


def _extend(target: Any, values: list[Any]) -> None:
    if not isinstance(target, list):
        raise ValueError("items for something that is no list")
    target.extend(values)


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("items for something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a deeply nested tuple overflows the C stack; huge integers can be chosen to
        # have equal hashes.
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**63)):
            raise ValueError("a key that is neither text nor a number")
        if key in target:
            raise ValueError("a key twice")
        target[key] = value


def _global(module: Any, name: Any) -> _Global:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("a global without a name")
    full = f"{module}.{name}"
    if full not in _GLOBALS:
        raise _Refusal(f"asks for {_shown(full)}, but only plain weights are read; {_RESAVE}")
    return _Global(full)


def _reduce(function: Any, arguments: Any) -> Any:
    """What the function of that name would make of the arguments, as far as weights need it."""
    match function, arguments:
        case _Global("collections.OrderedDict"), ():
            return {}
        case _Global("collections.OrderedDict"), (list(pairs),):  # as Python 2 has it
            if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
                raise ValueError("an OrderedDict not of pairs")
            mapping: dict[Any, Any] = {}
            _set_items(mapping, list(itertools.chain.from_iterable(pairs)))
            pairs.clear()  # or a list named again and again became as many dictionaries
            return mapping
        case (
            _Global("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2"),
            (_View(storage, start), int(offset), tuple(shape), tuple(strides), *_),
        ):
            return _Tensor(storage, start + offset, shape, strides)
        case (
            # Before PyTorch 0.4 a parameter was pickled as a call of its class.
            _Global("torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter"),
            (_Tensor() as tensor, *_),
        ):
            return tensor
        case _Global("torch.Size"), (tuple(shape),):
            return shape
        case _Global(name), tuple() if name in _IGNORED:
            return None
        case _Global(name), tuple() if name in _IGNORED_MAPPINGS:
            return {}
    raise ValueError("a call with other arguments than torch.save writes")


def _view(persistent_id: Any) -> _View:
    start = 0
    match persistent_id:
        case ("storage", _Global(kind), str(key), str(), int(numel)):
            pass
        case ("storage", _Global(kind), str(key), str(), int(numel), None):
            pass
        case ("storage", _Global(kind), str(key), str(), int(numel), (_, int(start), int())):
            pass
        case _:
            raise ValueError("something else than a storage")
    if kind not in _DTYPES:
        raise ValueError("a storage of something else than numbers")
    return _View(_Storage(key, kind, numel), start)


def _chosen(held: Any, choose: Choose) -> dict[str, _Tensor]:
    tensors = _named_tensors(held)
    if not tensors:
        raise _Refusal(f"holds no state dict; {_RESAVE}")
    return {name: tensors[name] for name in choose(tensors.keys())}


def _named_tensors(held: Any) -> dict[str, _Tensor]:
    """The tensors in a container and in those within it, each container once."""
    tensors: dict[str, _Tensor] = {}
    seen: set[int] = set()
    waiting = [("", held, 0)]
    while waiting:
        prefix, container, depth = waiting.pop()
        if isinstance(container, dict):
            items = list(container.items())
        elif isinstance(container, list | tuple) and not isinstance(container, _Tensor):
            items = list(enumerate(container))
        else:
            continue
        if depth > _MAX_DEPTH or id(container) in seen:
            continue
        seen.add(id(container))
        inner = []
        for key, value in items:
            name = f"{prefix}{key}"
            if len(name) > _MAX_NAME:
                raise _damaged(f"a name of over {_MAX_NAME} characters")
            if not isinstance(value, _Tensor):
                inner.append((f"{name}.", value, depth + 1))
            elif tensors.setdefault(name, value) is not value:
                raise _damaged(f"two tensors are called {_shown(name)}")
        waiting += reversed(inner)
    return tensors


def _checked(tensors: dict[str, _Tensor], size: int) -> dict[str, _Tensor]:
    """The tensors, if each lies within its storage and all are about as large as the file."""
    room = 2 * size + 2**20
    for name, (storage, start, shape, strides) in tensors.items():
        if not len(shape) == len(strides) <= _MAX_DIMENSIONS or any(
            type(number) is not int or number < 0
            for number in (storage.numel, start, *shape, *strides)
        ):
            raise _damaged(f"entry {_shown(name)} has an impossible shape")
        numel = math.prod(shape)
        last = start + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if numel > storage.numel or (numel and last >= storage.numel):
            raise _damaged(f"entry {_shown(name)} is larger than its storage")
        itemsize = 4 if storage.kind == _BFLOAT16 else _DTYPES[storage.kind].itemsize
        room -= math.prod(max(n, 1) for n in shape) * itemsize + _ARRAY_BYTES
        if room < 0:
            raise _damaged("its tensors are larger than the file")
    return tensors


def _array(tensor: _Tensor, data: np.ndarray) -> np.ndarray:
    """The tensor of checked geometry in the bytes of its storage."""
    storage, start, shape, strides = tensor
    dtype = _DTYPES[storage.kind]
    if 0 in shape:
        return np.empty(shape, np.float32 if storage.kind == _BFLOAT16 else dtype)
    # The stride of an axis of length 1 means nothing and may be anything.
    steps = [dtype.itemsize * step if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]
    array = np.ndarray(shape, dtype, data, start * dtype.itemsize, steps)
    if storage.kind == _BFLOAT16:
        bits = array.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)
    if dtype.kind == "b":  # in NumPy every byte of it must be 0 or 1
        return np.asarray(array.view(np.uint8) != 0, order="C")
    return np.asarray(array, order="C")


def _damaged(what: str) -> _Refusal:
    return _Refusal(f"{what}; the file is cut short or damaged, get it again")


def _shown(name: Any) -> str:
    """A name out of a file, fit for a line of text."""
    return repr(name[:80])[:90] if isinstance(name, str) else f"of type {type(name).__name__}"


def save(state_dict: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a state dict that `torch.load` of PyTorch 1.6 and later reads, `weights_only` too.

    Args:
      state_dict: name -> array of bool, uint8, int8 to int64 or float16 to float64.
      path: of the file; parents are created.

    Raises:
      InputError: an array of another type.
    """
    for name, array in state_dict.items():
        if array.dtype not in _KINDS:
            raise InputError(f"{path}: entry {name!r} is {array.dtype}; convert it to float32")
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):

        def write(name: str, data: bytes | np.ndarray) -> None:
            entry = zipfile.ZipInfo(f"archive/{name}")
            entry.file_size = memoryview(data).nbytes
            # An extra field that nobody reads fills the header up to the alignment.
            header = _ENTRY_HEADER.size + len(entry.filename) + 4
            padding = -(file.tell() + header) % _ALIGNMENT
            entry.extra = struct.pack("<2H", 0x4246, padding) + bytes(padding)
            with archive.open(entry, "w") as target:
                target.write(data)

        write("data.pkl", _pickled(state_dict))
        write("byteorder", b"little")
        for key, array in enumerate(state_dict.values()):
            write(f"data/{key}", array.ravel().view(np.uint8))
        write("version", b"3\n")


def _pickled(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """A pickle of protocol 2: the OrderedDict of tensors, the storages by their position."""
    empty = b"ccollections\nOrderedDict\n)R"
    pieces = [b"\x80\x02", empty, b"("]
    for key, (name, array) in enumerate(state_dict.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        kind = _KINDS[array.dtype].removeprefix("torch.")
        pieces += [
            *(_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("),
            *(_text("storage"), b"ctorch\n%b\n" % kind.encode(), _text(str(key)), _text("cpu")),
            *(_integer(array.size), b"tQ", _integer(0)),
            *(b"(", *map(_integer, array.shape), b"t(", *map(_integer, strides), b"t"),
            *(b"\x89", empty, b"tR"),
        ]
    return b"".join([*pieces, b"u."])


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)
