"""PyTorch files of hand-written pickles, for tests."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from wsss_jax.errors import InputError
from wsss_jax.interop.torch_files import load

MAGIC = 0x1950A86A20F9469CFC6C
PAIR = np.float32([1, 2])
FORMATS = ("zip", "legacy")


def opcodes(value):
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    shape=(2,), strides=(1,), start=0, *, key="0", numel=2, kind="FloatStorage", view=(None,)
):
    storage = [*map(opcodes, (key, "cpu", numel, *view)), b"tQ"]
    return b"".join(
        [
            *(b"ctorch._utils\n_rebuild_tensor_v2\n((", opcodes("storage")),
            *(b"ctorch\n%b\n" % kind.encode(), *storage),
            *(*map(opcodes, (start, shape, strides)), b"\x89NtR"),
        ]
    )


def dictionary(**entries):
    return b"}(" + b"".join(opcodes(name) + value for name, value in entries.items()) + b"u"


def write_file(path, form, body, storages=None):
    """A file of torch.save around the opcodes of its object, in either format."""
    storages = {"0": PAIR} if storages is None else storages
    body = b"\x80\x04" + body + b"."
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", body)
            for key, array in storages.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
    else:
        data = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
        keys = pickle.dumps(list(storages), 2)
        head = [pickle.dumps(value, 2) for value in (MAGIC, 1001, {})]
        path.write_bytes(b"".join([*head, body, keys, *data]))
    return path


def check_refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        load(path)
    reason = str(caught.value).removeprefix(f"{path}: ")
    assert reason != str(caught.value) and "\n" not in reason and len(reason) < 300


def check_same(ours, expected):
    assert list(ours) == list(expected)
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape, name
        assert ours[name].tobytes() == value.tobytes(), name


STATE = {
    "module.conv.weight": np.random.default_rng(0).standard_normal((2, 3, 1, 2), np.float32),
    "bn.num_batches_tracked": np.array(7),
    "höhe": np.float64([np.nan, -0.0]),
    "half": np.float16([1, np.inf]),
    "flags": np.array([True, False]),
    "bytes": np.arange(3, dtype=np.uint8),
    "empty": np.zeros((0, 4), np.int32),
}
