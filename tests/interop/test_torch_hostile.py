"""Hostile and damaged PyTorch files: refused in one line, within bounds of memory."""

import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.interop.torch_writer import (
    FORMATS,
    PAIR,
    STATE,
    check_refused,
    check_same,
    dictionary,
    opcodes,
    tensor,
    write_file,
)
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_pickle
from wsss_jax.interop.torch_files import load, save


def _attacks(marker):
    system = b"cos\nsystem\n"
    shell, python = opcodes(f"touch {marker}"), opcodes(f"open({str(marker)!r}, 'w')")
    bound = b"ccollections\nOrderedDict\n)R}" + opcodes("__setstate__") + system + b"sb"
    mapped = b"cbuiltins\nmap\ncbuiltins\neval\n]" + python + b"a\x86\x81"
    return {
        "REDUCE": system + shell + b"\x85R",
        "STACK_GLOBAL": opcodes("os") + opcodes("system") + b"\x93" + shell + b"\x85R",
        "BUILD": bound + shell + b"b",
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(" + system + shell + b"o",
        "NEWOBJ": b"cbuiltins\ntuple\n" + mapped + b"\x85\x81",
        "eval": b"cbuiltins\neval\n" + python + b"\x85R",
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("attack", _attacks(""))
def test_nothing_in_a_file_is_executed(attack, form, tmp_path):
    marker = tmp_path / "marker"
    body = _attacks(marker)[attack]
    pickle.loads(b"\x80\x04" + body + b".")
    marker.unlink()  # it works where a pickle is trusted
    path = write_file(tmp_path / "model.pth", form, dictionary(a=body, b=tensor()))
    check_refused(path, r"asks for ('os\.system'|'builtins\.(tuple|eval)'|INST|OBJ)")
    assert not marker.exists()


NESTED = b"N" + b"\x85" * 60_000
HOSTILE = {
    "impossible shape": {
        "before the storage": dictionary(a=tensor(start=-1)),
        "negative shape": dictionary(a=tensor((-2,))),
        "negative stride": dictionary(a=tensor((2,), (-1,), 1)),
        "negative storage": dictionary(a=tensor(numel=-2, shape=(0,))),
        "negative view": dictionary(a=tensor((1,), view=(("v", -1, 1),))),
        "too few strides": dictionary(a=tensor((1, 1))),
        "many dimensions": dictionary(a=tensor((1,) * 9, (1,) * 9)),
        "shape of truths": dictionary(a=tensor((True,))),
        "shape of fractions": dictionary(a=tensor((1.0,))),
        "shape of tuples": dictionary(a=tensor(((1,),))),
    },
    "larger than its storage": {
        "large shape": dictionary(a=tensor((2**40,))),
        "large start": dictionary(a=tensor(start=1)),
        "huge start": dictionary(a=tensor(start=2**62)),
        "huge stride": dictionary(a=tensor((2,), (2**61,))),
        "overlapping strides": dictionary(a=tensor((3,), (0,))),
        "overflowing product": dictionary(a=tensor((2**32, 2**32), (0, 0))),
    },
    "larger than the file": {
        "empty of a large shape": dictionary(a=tensor((0, 2**62), (1, 1))),
        "huge storage": dictionary(a=tensor((2**60,), numel=2**60)),
    },
    "storage": {
        "smaller than in the file": dictionary(a=tensor((1,), numel=1)),
        "larger than in the file": dictionary(a=tensor(numel=2**62)),
        "not in the file": dictionary(a=tensor(key="1")),
    },
    "pickle is not valid": {
        "storage of two types": dictionary(a=tensor(), b=tensor(kind="IntStorage")),
        "storage of no type": dictionary(a=tensor(kind="Size")),
        "deep key": b"}" + NESTED + b"Ns",
        "unhashable key": b"}]Ns",
        "keys of one hash": opcodes({2**61 - 1: 1, 2 * (2**61 - 1): 1, 2**80: 1}),
        "a key twice": dictionary(a=tensor()) + opcodes("a") + b"Ns",
        "pairs of one": b"ccollections\nOrderedDict\n" + opcodes(([1],)) + b"R",
        "digits": b"I" + b"9" * 100_000 + b"\n",
        "text without end": b"X\xff\xff\xff\xff",
        "bytes without end": b"B\xff\xff\xff\xff",
        "bad text": b"X\x01\x00\x00\x00\xff",
        "unknown opcode": b"\xff",
        "empty stack": b"\x85",
        "no mark": b"t",
        "no memo": b"h\x07",
        "items of no list": b"NNa",
        "index of four billion": b"Nr\xff\xff\xff\xff",
        "key that doubles": b"}N\x94"
        + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60))
        + b"Ns",
        "call of a list": b"]" + opcodes(()) + b"R",
        "call of a storage type": b"ctorch\nFloatStorage\n)R",
        "parameter of nothing": b"ctorch.nn.parameter\nParameter\n)R",
        "size of a list": b"ctorch\nSize\n]\x85R",
        "pairs of a tuple": b"ccollections\nOrderedDict\n" + opcodes(((("a", 1),),)) + b"R",
        "pairs with a deep key": b"ccollections\nOrderedDict\n](" + NESTED + b"Nee\x85R",
        "false length": b"\x8e" + b"\xff" * 7 + b"\x7f",
    },
    "asks for": {
        "long integer": b"\x8b" + struct.pack("<i", 10**5) + b"\x01" * 10**5,
        "long bytes": b"\x8e" + struct.pack("<Q", 4) + bytes(4),
        "copy of the top": b"N2",
        "set": b"\x8f",
        "registered extension": b"\x82\x01",
        "keywords": b"ccollections\nOrderedDict\n)}\x92",
        "line break in a name": opcodes("a\nb") + opcodes("c" * 10**4) + b"\x93",
    },
    "more than weights": {"many steps": b"}" * 400_000},
    "no state dict": {
        "itself": b"]\x94h\x00a",
        "deep": NESTED,
        "deep dictionaries": b"}X\x01\x00\x00\x00a" * 1000 + tensor() + b"s" * 1000,
        "tuple": b")",
        "itself as state dict": b"}\x94" + opcodes("state_dict") + b"h\x00s",
        "dictionaries in each other": b"}" + b"K\x01}" * 49_000 + b"s" * 49_000,
        "number": dictionary(state_dict=dictionary(epoch=b"K\x01")),
    },
    "a name of over 300": {"long name": dictionary(**{"a" * 1000: tensor()})},
    "two tensors are called 'a.b'": {
        "names that meet": dictionary(**{"a.b": tensor(), "a": dictionary(b=tensor(key="1"))}),
    },
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("match", "body"),
    [
        pytest.param(match, body, id=name)
        for match, cases in HOSTILE.items()
        for name, body in cases.items()
    ],
)
def test_hostile_pickles_are_refused(match, body, form, tmp_path):
    path = tmp_path / "model.pth"
    check_same(load(write_file(path, form, dictionary(a=tensor()))), {"a": PAIR})
    check_refused(write_file(path, form, body), match)


def test_a_file_cannot_change_how_the_next_one_is_read(tmp_path):
    """Attributes in a pickle are ignored, so it cannot replace ours."""
    path = tmp_path / "model.pth"
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict", b"numpy\ndtype"):
        for state in ({"__call__": 1, "x": 2}, (None, {"__defaults__": (1, 2), "__doc__": "x"})):
            poison = b"c" + name + b"\n" + opcodes(state) + b"b"
            body = dictionary(a=poison, b=tensor())
            check_same(load(write_file(path, "zip", body)), {"b": PAIR})
        stand_in = torch_pickle.GLOBALS[name.decode().replace("\n", ".")]
        assert not vars(stand_in) and stand_in.__defaults__ != (1, 2) and stand_in.__doc__ != "x"


@pytest.mark.parametrize("form", FORMATS)
def test_a_storage_named_by_thousands_of_tensors_is_refused(form, tmp_path):
    array = np.zeros(20_000, np.float32)
    entries = {f"t{i}": tensor((array.size,), numel=array.size) for i in range(1000)}
    check_refused(
        write_file(tmp_path / "model.pth", form, dictionary(**entries), {"0": array}),
        "larger than the file",
    )


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_storage_is_refused(form, tmp_path):
    check_refused(
        write_file(tmp_path / "model.pth", form, dictionary(a=tensor()), {}), "'0' is missing"
    )


def test_a_legacy_file_with_false_storages_is_refused(tmp_path):
    used, path = tensor(numel=2**62), tmp_path / "model.pth"
    for body in (dictionary(a=used), dictionary(state_dict=dictionary(), optimizer=used)):
        content = write_file(path, "legacy", body).read_bytes()
        path.write_bytes(content.replace(struct.pack("<q", 2), struct.pack("<q", 2**62)))
        check_refused(path, "data is missing")
        path.write_bytes(content.replace(pickle.dumps(["0"], 2), b"\x80\x02]]a."))
        check_refused(path, "not those")


def _zip(path, *entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_files_that_torch_does_not_write_are_refused(tmp_path):
    path, body = tmp_path / "model.pth", b"\x80\x02" + dictionary(a=tensor()) + b"."
    pickled, data = ("x/data.pkl", body), ("x/data/0", PAIR.tobytes())
    check_refused(
        _zip(path, pickled, ("x/data/0", bytes(10**6)), method=zipfile.ZIP_DEFLATED), "compr"
    )
    check_refused(_zip(path, pickled, data, data), "contradicts")
    check_refused(_zip(path, data), "not one of torch")
    check_refused(_zip(path, pickled, data, ("x/constants.pkl", b"")), "TorchScript")
    check_refused(_zip(path, pickled, data, ("x/byteorder", b"big")), "big-endian")
    check_refused(_zip(path, ("x/data.pkl", bytes(3 * 2**20))), "more than weights")
    whole = _zip(path, pickled, data).read_bytes()
    assert load(path)["a"].tobytes() == PAIR.tobytes()
    central = whole.rindex(b"PK\1\2")
    for at, value, match in (
        (central + 8, b"\1", "encrypted"),
        (central + 24, b"\xff\xff\xff\xff", "contradicts"),
        (central + 42, b"\xff\xff\xff\xff", "data is missing"),
        (central + 42, b"\1\0\0\0", "not where"),
        (len(whole) - 10, b"\xff\xff\xff\xff", "too large"),
        (whole.index(PAIR.tobytes()), b"\1", "checksum"),
    ):
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        check_refused(path, match)


def test_other_files_are_refused(tmp_path):
    check_refused(tmp_path / "none.pth", "no such file")
    check_refused(tmp_path, "no such file")
    for content, match in (
        (b"", "not a file of torch"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "not a file of torch"),
        (bytes(257) + b"ustar" + bytes(600), r"PyTorch 0\.1"),
        (pickle.dumps({"a": 1}), "not a file of torch"),
    ):
        path = tmp_path / "model.pth"
        path.write_bytes(content)
        check_refused(path, match)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of a state dict in either format."""
    folder = tmp_path_factory.mktemp("originals")
    save(STATE, folder / "zip")
    storages = {"0": PAIR, "7": np.arange(6), "1": np.float16([1, 2, 3]), "9": np.zeros(0, "f4")}
    state = dictionary(
        weight=tensor((2, 2), (1, 2), key="7", numel=6, kind="LongStorage"),
        bias=tensor(key="0"),
        view=tensor((1,), key="1", numel=3, kind="HalfStorage", view=(("v", 1, 2),)),
    )
    momentum = tensor((0,), key="9", numel=0)
    body = dictionary(state_dict=state, epoch=b"K\x05", optimizer=dictionary(momentum=momentum))
    write_file(folder / "legacy", "legacy", body, storages)
    return {form: (folder / form).read_bytes() for form in FORMATS}


def _load_bounded(path):
    """The state dict, or None for a refusal; nothing else may come out of any file."""
    tracemalloc.start()
    try:
        loaded = load(path)
    except InputError as error:
        assert "\n" not in str(error)
        loaded = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= 3 * path.stat().st_size + 20e6
    return loaded


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_anywhere_is_refused(form, originals, tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(originals[form])
    assert load(path)
    for length in reversed(range(len(originals[form]))):
        os.truncate(path, length)
        with pytest.raises(InputError):
            load(path)


@pytest.mark.parametrize("form", FORMATS)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_gives_a_state_dict_or_a_refusal(form, originals, tmp_path, data):
    original = originals[form]
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(original) - 1))
        match data.draw(st.sampled_from(["flip", "splice", "move", "number"])):
            case "flip":
                content[at : at + 1] = [original[at] ^ 1 << data.draw(st.integers(0, 7))]
            case "splice":
                content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
            case "move":
                source = data.draw(st.integers(0, len(original) - 1))
                content[at:at] = original[source : source + data.draw(st.integers(1, 40))]
            case "number":
                number = data.draw(st.sampled_from([-1, 2**31 - 1, 2**62]))
                content[at : at + 10] = b"\x8a\x08" + struct.pack("<q", number)
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    loaded = _load_bounded(path)
    for name, array in (loaded or {}).items():
        assert isinstance(name, str) and array.flags.c_contiguous
    if loaded is not None:
        assert sum(array.nbytes for array in loaded.values()) <= 2 * len(content) + 2**20
        if form == "zip":
            check_same(loaded, STATE)


@pytest.mark.parametrize(
    "body",
    [
        b"N" + b"\x94" * 10**6,
        b"}\x94" * 10**6,
        b"X\x00\x00\x1e\x00\xf0\x9f\x98\x80" + b"a" * 0x1DFFFC + b"}\x94" * 50_000,
        tensor() + b"q\x09}(" + b"".join(b"U\x05%05dh\x09" % i for i in range(20_000)) + b"u",
        b"ccollections\nOrderedDict\n\x94]("
        + b"".join(b"K%cN\x86" % i for i in range(100))
        + b"e\x85\x94"
        + b"h\x00h\x01R" * 20_000,
        b"}" * 149_000,
        b"}K\x01Ns" * 37_000,
        b"\x8c\x0a\xf0\x9f\x98\x80abcdef" * 149_000,
        (b"\x8a\xff" + b"\x01" * 255) * 8_000,
        b"}(" + b"".join(b"U\x05%05dN" % i for i in range(70_000)) + b"u",
        b"N" + b"r\xef\x49\x02\x00",
    ],
    ids=[
        *(
            "memo",
            "dictionaries",
            "text",
            "names",
            "pairs",
            "many dictionaries",
            "small dictionaries",
        ),
        *("many texts", "long integers", "many keys", "memo index"),
    ],
)
def test_a_pickle_cannot_take_memory_that_its_file_does_not_have(body, tmp_path):
    assert _load_bounded(write_file(tmp_path / "model.pth", "legacy", body)) is None
