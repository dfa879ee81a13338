import os
import re
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden import reference
from tests.interop.mxnet_writer import FLAGS, VERSIONS, array_list, encode, header, mxnet_name
from wsss_jax.errors import InputError
from wsss_jax.interop.mxnet_files import load, to_torch_names


def _example(version, dtype=np.float32):
    rng = np.random.default_rng(0)
    arrays = {
        "arg:conv1a_weight": rng.normal(size=(3, 1, 2, 1)).astype(dtype),
        "aux:bn7_moving_var": np.array([0.0, -0.0, np.nan, np.inf, 6e-8], dtype),
        "größe": rng.normal(size=1).astype(dtype),
    }
    contents = array_list(
        [encode(version, a) for a in arrays.values()], [n.encode() for n in arrays]
    )
    return contents, {re.sub("^(arg|aux):", "", name): a for name, a in arrays.items()}


def _load(path, contents):
    path.write_bytes(contents)
    return load(path)


def _load_or_refuse(path, contents):
    """Loads within the memory bound, or None for an `InputError` of one line with the name."""
    tracemalloc.start()
    try:
        arrays = _load(path, contents)
    except InputError as error:
        arrays = None
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= 3 * len(contents) + 1e6
    for array in (arrays or {}).values():
        assert array.dtype == np.float32 and array.size > 0
    return arrays


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("version", VERSIONS)
def test_arrays_come_back_bit_for_bit(tmp_path, version, dtype):
    contents, expected = _example(version, dtype)
    arrays = _load(tmp_path / "a.params", contents)
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == np.float32 and arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.astype(np.float32).tobytes()


def test_headers_of_all_versions_share_a_file_and_v3_has_scalars(tmp_path):
    arrays = [encode(version, np.full(3, i, np.float32)) for i, version in enumerate(VERSIONS)]
    arrays.append(encode("V3", np.array(7, np.float32)))
    loaded = _load(tmp_path / "a.params", array_list(arrays, [b"a", b"b", b"c", b"d", b"scalar"]))
    assert [float(a.max()) for a in loaded.values()] == [0, 1, 2, 3, 7]
    assert loaded["scalar"].shape == ()


ONE = np.ones(2, np.float32)
GOOD = encode("V2", ONE)
HUGE = 2**62
REFUSED = {
    "not an NDArray list": array_list([GOOD], [b"a"], magic=0x113),
    "claims to hold 1152921504606846976 arrays": struct.pack("<QQQ", 0x112, 0, 2**60),
    "have no names": array_list([GOOD], []),
    "1 arrays and 2 names": array_list([GOOD], [b"a", b"b"]),
    "1 arrays and 1152921504606846976 names": array_list([GOOD], [])[:-8]
    + struct.pack("<Q", 2**60),
    "name of 1152921504606846976 bytes": array_list([GOOD], [b"a"])[:-9] + struct.pack("<Q", 2**60),
    "not UTF-8": array_list([GOOD], [b"\xff\n"]),
    "two arrays are called 'a'": array_list([GOOD, GOOD], [b"arg:a", b"aux:a"]),
    "data after its last name": array_list([GOOD], [b"a"]) + b"\0",
    "array 1 is row_sparse": array_list([GOOD, header("V2", (2,), 0, storage=1)], []),
    "array 0 is csr": array_list([header("V3", (2,), 0, storage=2)], []),
    "of storage type -1": array_list([header("V2", (2,), 0, storage=-1)], []),
    "array 0 is float64": array_list([header("old", (2,), 1)], []),
    "array 0 is int64": array_list([encode("V2", np.ones(2, np.int64))], [b"a"]),
    "array 0 is bfloat16": array_list([header("V2", (2,), 12)], []),
    "of dtype -1": array_list([header("V1", (2,), -1)], []),
    "has 33 dimensions": array_list([header("V2", (1,) * 33, 0)], []),
    "has 4294967295 dimensions": array_list([b"\xff" * 4], []),
    r"shape \(4611686018427387904, 4611686018427387904\) is longer": array_list(
        [header("V3", (HUGE, HUGE), 0)], []
    ),
    r"array 0 of shape \(5,\) is longer": array_list([header("V1", (5,), 0)], []),
}
NO_VALUES = {
    "a negative dimension": header("V2", (-1, -2), 0),
    "a dimension of 0": header("V3", (HUGE, 0, HUGE), 0),
    "old, no dimensions": struct.pack("<I", 0),
    "V1, no dimensions": struct.pack("<Ii", VERSIONS["V1"], 0),
    "V2, no dimensions": struct.pack("<Iii", VERSIONS["V2"], 0, 0),
    "V3, unknown": struct.pack("<Iii", VERSIONS["V3"], 0, -1),
    "a hostile number of dimensions": struct.pack("<Iii", VERSIONS["V3"], 0, -(2**31)),
}


@pytest.mark.parametrize(
    ("problem", "contents"),
    [
        *REFUSED.items(),
        *(("array 0 has no values", array_list([header], [b"a"])) for header in NO_VALUES.values()),
    ],
    ids=[*REFUSED, *NO_VALUES],
)
def test_a_bad_file_is_refused_by_name(tmp_path, problem, contents):
    path = tmp_path / "bad.params"
    with pytest.raises(InputError, match=rf"^.*bad\.params: .*{problem}.*; .*$"):
        _load(path, contents)
    assert _load_or_refuse(path, contents) is None


def test_what_is_not_a_readable_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent.params", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="no such file"):
            load(path)
    with pytest.raises(InputError, match=r"a{300}: "):  # the system refuses to look
        load(tmp_path / ("a" * 300))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_truncation_is_refused(tmp_path, version):
    contents, _ = _example(version)
    for end in range(len(contents)):
        assert _load_or_refuse(tmp_path / "a.params", contents[:end]) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_flipped_bit_changes_one_value_or_name_or_is_refused(tmp_path, version):
    contents, expected = _example(version)
    for bit in range(0, 8 * len(contents), 3):  # two or three bits of every byte
        flipped = bytearray(contents)
        flipped[bit // 8] ^= 1 << bit % 8
        arrays = _load_or_refuse(tmp_path / "a.params", bytes(flipped))
        if arrays is not None:
            names = zip(arrays, expected, strict=True)
            values = zip(arrays.values(), expected.values(), strict=True)
            changed = sum(name != other for name, other in names)
            changed += sum(a.tobytes() != b.tobytes() for a, b in values)
            assert changed <= 1


FIELDS = st.sampled_from(
    [-(2**63), -1, 0, 1, 2, 33, 10_000, 2**31 - 1, 2**32, 2**60, *FLAGS.values()]
)
POSITIONS = st.integers(0, 400)
EDITS = st.one_of(
    st.tuples(POSITIONS, POSITIONS, st.binary(max_size=40)),
    st.tuples(POSITIONS, st.just(8), FIELDS.map(lambda n: struct.pack("<Q", n % 2**64))),
    st.tuples(POSITIONS, st.just(4), FIELDS.map(lambda n: struct.pack("<I", n % 2**32))),
    st.tuples(POSITIONS, st.just(0), st.sampled_from(list(VERSIONS)).map(lambda v: encode(v, ONE))),
)


@settings(max_examples=500, deadline=None)
@given(
    version=st.sampled_from(list(VERSIONS)),
    dtype=st.sampled_from([np.float32, np.float16]),
    edits=st.lists(EDITS, min_size=1, max_size=4),
)
def test_a_spliced_file_is_read_or_refused(tmp_path_factory, version, dtype, edits):
    contents, _ = _example(version, dtype)
    for position, length, inserted in edits:
        contents = contents[:position] + inserted + contents[position + length :]
    _load_or_refuse(tmp_path_factory.getbasetemp() / "spliced.params", contents)


@pytest.mark.parametrize(("dtype", "times"), [(np.float32, 1), (np.float16, 3)])
def test_memory_stays_near_the_size_of_the_file(tmp_path, dtype, times):
    path, array = tmp_path / "a.params", np.ones((64, 2**14), dtype)
    path.write_bytes(array_list([encode("V2", array)] * 2, [b"a", b"b"]))
    tracemalloc.start()
    arrays = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(arrays) == 2
    assert peak <= times * path.stat().st_size + 1e6


def test_as_many_arrays_as_are_read_cost_little_memory(tmp_path):
    array = encode("old", np.ones(1, np.float32))
    names = [f"{i:_<200}".encode() for i in range(10_001)]
    assert len(_load(tmp_path / "a.params", array_list([array] * 10_000, names[:10_000]))) == 10_000
    tracemalloc.start()
    load(tmp_path / "a.params")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * (tmp_path / "a.params").stat().st_size + 20e6
    with pytest.raises(InputError, match="10001 arrays"):
        _load(tmp_path / "a.params", array_list([array] * 10_001, names))


def test_names_map_one_to_one_onto_resnet38_but_its_classifier():
    shapes = reference.shapes("phase1")
    del shapes["fc8.weight"]
    arrays = {mxnet_name(name): np.broadcast_to(0.0, shape) for name, shape in shapes.items()}
    unknown = ["linear1000_weight", "linear1000_bias", "res8a_branch2a_weight", "conv1a_bias"]
    arrays |= {name: np.zeros(1) for name in unknown}
    assert len(arrays) == 191 + len(unknown)

    renamed = to_torch_names(arrays)
    assert all(renamed.pop(name) is arrays[name] for name in unknown)
    assert {name: array.shape for name, array in renamed.items()} == shapes


@pytest.mark.parametrize(
    ("mxnet", "torch"),
    [
        ("conv1a_weight", "conv1a.weight"),
        ("res2a_branch1_weight", "b2.conv_branch1.weight"),
        ("res4b5_branch2b1_weight", "b4_5.conv_branch2b1.weight"),
        ("bn3b2_branch2a_gamma", "b3_2.bn_branch2a.weight"),
        ("bn7a_branch2b2_moving_mean", "b7.bn_branch2b2.running_mean"),
        ("bn7_beta", "bn7.bias"),
        ("bn7_moving_var", "bn7.running_var"),
    ],
)
def test_names_are_those_of_pytorch(mxnet, torch):
    assert list(to_torch_names({mxnet: np.zeros(1)})) == [torch]
