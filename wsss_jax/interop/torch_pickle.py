"""The pickles in PyTorch's files, read without executing anything, and written.

A pickle is not trusted. Its opcodes are checked and made harmless first: only those that
`torch.save` writes pass, no opcode sets an attribute, and there are no more than fit in memory.
Then the standard library's unpickler runs them. What they name is looked up in a table of functions
of our own, which note the arguments of tensors and make dictionaries.
"""

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.interop.torch_bytes import RESAVE, ContentsError, DamageError, quote

MAX_BYTES = 2**21  # of a pickle

BFLOAT16 = "torch.BFloat16Storage"
DTYPES: dict[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    BFLOAT16: np.dtype("<u2"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
KINDS = {dtype: kind for kind, dtype in DTYPES.items() if kind != BFLOAT16}

_OPCODES = {  # of what `torch.save` writes, as `pickletools` calls them
    *("PROTO", "FRAME", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET"),
    *("LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "BININT", "BININT1", "BININT2"),
    *("LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES"),
    *("SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST"),
    *("APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL"),
    *("REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
_EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
_REPLACED = {
    "EMPTY_DICT": _EMPTY_ORDERED_DICT,  # a dictionary that checks its keys
    "NEWOBJ": pickle.REDUCE,  # a call like any other
    "BUILD": pickle.POP,  # attributes, of an OrderedDict or a numpy.dtype, are not needed
    "FRAME": b"",  # its length would be wrong now
}
# DeepLabV3+ with its optimizer takes 32 000 opcodes and 110 KB of pickle. An opcode takes up to 120
# bytes of memory, a byte of text up to four: under 25 MB for any pickle.
_MAX_OPCODES = 150_000
# What the unpickler raises for a pickle that is not valid.
_INVALID = (pickle.UnpicklingError, AttributeError, EOFError, LookupError, TypeError, ValueError)


class Storage(NamedTuple):
    """What a pickle says of a storage; `kind` is one of `DTYPES`, `numel` counts elements."""

    key: str
    kind: str
    numel: int


class Tensor(NamedTuple):
    """What a pickle says of a tensor; start and strides count elements. Nothing is checked yet."""

    storage: Storage
    start: int
    shape: tuple
    strides: tuple


class Unpickled(NamedTuple):
    """The value of a pickle (plain containers and `Tensor`s) and all storages it names, by key."""

    value: Any
    storages: dict[str, Storage]


def unpickle(stream: io.BytesIO) -> Unpickled:
    """Unpickles the next pickle in the stream.

    Dictionaries have keys of text and integers only. Settings that training programs store next to
    the weights are left out: they become None, or dictionaries where entries follow.

    Raises:
      InputError: it is damaged, too large, or asks for anything but plain weights.
    """
    try:
        unpickler = _Unpickler(_make_harmless(stream))
        return Unpickled(unpickler.load(), unpickler.storages)
    except ContentsError:
        raise
    except _INVALID as error:
        raise DamageError("its pickle is not valid") from error


def _make_harmless(stream: io.BytesIO) -> bytes:
    """Returns the next pickle in the stream, checked, with some opcodes replaced."""
    harmless = bytearray()
    contents = stream.getvalue()
    for count, (opcode, argument, start) in enumerate(pickletools.genops(stream)):
        if count == _MAX_OPCODES:
            raise ContentsError(f"holds far more than weights; {RESAVE}")
        if opcode.name not in _OPCODES:
            raise ContentsError(f"asks for {opcode.name} in its pickle; {RESAVE}")
        if opcode.name == "LONG_BINPUT" and argument not in range(_MAX_OPCODES):
            raise ValueError("the unpickler would make a list of that length")
        harmless += _REPLACED.get(opcode.name, contents[start : stream.tell()])
    return bytes(harmless)


class _View(NamedTuple):
    """A storage from an element on, as files of PyTorch 0.3 and earlier name it."""

    storage: Storage
    start: int


class _Unpickler(pickle.Unpickler):
    """Imports nothing, and notes the storages a pickle names."""

    def __init__(self, pickled: bytes):
        super().__init__(io.BytesIO(pickled), encoding="latin-1")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in GLOBALS:
            raise ContentsError(
                f"asks for {quote(full_name)}, but only plain weights are read; {RESAVE}"
            )
        return GLOBALS[full_name]

    def persistent_load(self, persistent_id: Any) -> _View:
        start = 0
        match persistent_id:
            case ("storage", str(kind), str(key), str(), int(numel)):
                pass
            case ("storage", str(kind), str(key), str(), int(numel), None):
                pass
            case ("storage", str(kind), str(key), str(), int(numel), (_, int(start), int())):
                pass
            case _:
                raise ValueError("not a storage")
        if kind not in DTYPES:
            raise ValueError("a storage of something else than numbers")
        storage = Storage(key, kind, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("two storages of one key")
        return _View(storage, start)


class _Dict(dict):
    """A dictionary with keys of text and integers only, each once."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        # Hashing a deeply nested tuple overflows the C stack; huge integers can be chosen to have
        # equal hashes.
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**63)):
            raise ValueError("a key that is neither text nor a number")
        if key in self:
            raise ValueError("a key twice")
        super().__setitem__(key, value)


def _make_ordered_dict(pairs: Any = None) -> _Dict:
    made = _Dict()
    if pairs is not None:  # as Python 2 has it
        if not isinstance(pairs, list):
            raise ValueError("an OrderedDict not of a list")
        for pair in pairs:
            if not isinstance(pair, list | tuple):
                raise ValueError("an OrderedDict not of pairs")
            key, value = pair
            made[key] = value
        pairs.clear()  # or a list named again and again would become as many dictionaries
    return made


def _rebuild_tensor(*arguments: Any) -> Tensor:
    match arguments:
        case (_View(storage, start), int(offset), tuple(shape), tuple(strides), *_):
            return Tensor(storage, start + offset, shape, strides)
    raise ValueError("a tensor with other arguments than torch.save writes")


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter that is not a tensor")
    return tensor


def _make_size(shape: Any) -> tuple:
    if not isinstance(shape, tuple):
        raise ValueError("a size that is not a tuple")
    return shape


# What a pickle may name -> what stands for it: a function, or a text if it is never called.
GLOBALS: dict[str, Any] = {
    **{name: name for name in DTYPES},
    "collections.OrderedDict": _make_ordered_dict,
    "torch.Size": _make_size,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.nn.parameter.Parameter": _rebuild_parameter,  # a call of the class before PyTorch 0.4
    **{f"builtins.{name}": name for name in ("dict", "float", "int", "list")},  # of a defaultdict
}
# What training programs store next to the weights, such as the best score or their settings: it is
# never made, but read as None, or as an empty dictionary where entries follow.
GLOBALS |= dict.fromkeys(
    (
        *("_codecs.encode", "argparse.Namespace", "builtins.set", "torch.device", "numpy.dtype"),
        *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        *("pathlib.PosixPath", "pathlib.PurePosixPath"),
        *("pathlib.WindowsPath", "pathlib.PureWindowsPath"),
    ),
    lambda *_: None,
)
GLOBALS |= dict.fromkeys(
    (
        "collections.defaultdict",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning_utilities.core.rank_zero.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    ),
    lambda *_: _Dict(),
)


def pickle_state_dict(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """Pickles an OrderedDict of tensors by protocol 2; storages are named by their position.

    Python's own pickler would import PyTorch.

    Args:
      state_dict: name -> array of one of `KINDS`.
    """
    pieces = [b"\x80\x02", _EMPTY_ORDERED_DICT, b"("]
    for key, (name, array) in enumerate(state_dict.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        kind = KINDS[array.dtype].removeprefix("torch.")
        pieces += [
            *(_dump_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("),
            *(_dump_text("storage"), b"ctorch\n%b\n" % kind.encode()),
            *(_dump_text(str(key)), _dump_text("cpu")),
            *(_dump_int(array.size), b"tQ", _dump_int(0)),
            *(b"(", *map(_dump_int, array.shape), b"t(", *map(_dump_int, strides), b"t"),
            *(b"\x89", _EMPTY_ORDERED_DICT, b"tR"),
        ]
    return b"".join([*pieces, b"u."])


def _dump_text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _dump_int(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)
