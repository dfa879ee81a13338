import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsss_jax.errors import InputError
from wsss_jax.interop.torch_files import load, save

MAGIC = 0x1950A86A20F9469CFC6C
PAIR = np.float32([1, 2])
FORMATS = ("zip", "legacy")


def _opcodes(value):
    return pickle.dumps(value, 2)[2:-1]


def _tensor(
    shape=(2,), strides=(1,), start=0, *, key="0", numel=2, kind="FloatStorage", view=(None,)
):
    storage = [*map(_opcodes, (key, "cpu", numel, *view)), b"tQ"]
    return b"".join(
        [
            *(b"ctorch._utils\n_rebuild_tensor_v2\n((", _opcodes("storage")),
            *(b"ctorch\n%b\n" % kind.encode(), *storage),
            *(*map(_opcodes, (start, shape, strides)), b"\x89NtR"),
        ]
    )


def _dict(**entries):
    return b"}(" + b"".join(_opcodes(name) + value for name, value in entries.items()) + b"u"


def _write(path, form, body, storages=None):
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


def _refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        load(path)
    reason = str(caught.value).removeprefix(f"{path}: ")
    assert reason != str(caught.value) and "\n" not in reason and len(reason) < 300


def _assert_same(ours, expected):
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


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "model.pth"
    transposed = np.arange(6, dtype=np.int16).reshape(2, 3).T
    save({**STATE, "transposed": transposed}, path)
    loaded = load(path)
    _assert_same(loaded, {**STATE, "transposed": transposed})
    assert all(array.flags.c_contiguous for array in loaded.values())


def test_a_type_without_a_place_in_the_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"model\.pth: entry 'a' is uint16"):
        save({"a": np.zeros(3, np.uint16)}, tmp_path / "model.pth")
    assert not any(tmp_path.iterdir())


def test_neither_way_holds_a_second_copy(tmp_path):
    state = {str(i): np.ones(2**20, np.float32) for i in range(8)}
    path = tmp_path / "model.pth"
    tracemalloc.start()
    try:
        save(state, path)
        saving = tracemalloc.get_traced_memory()[1]
        loaded = load(path)
        loading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    _assert_same(loaded, state)
    assert saving < 2**20 and loading < 1.15 * 32 * 2**20


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMATS)
def test_checkpoints_of_torch(form, protocol, tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    state = model.state_dict(keep_vars=True)
    base = torch.randn(4, 6)
    state.update(
        transposed=base.T,
        part=base[1:3, ::2],
        half=base.half(),
        wide=base.bfloat16().T,
        flags=(base > 0).T,
        small=torch.arange(-3, 3, dtype=torch.int8),
        row=base[2],
        rows=base[1:3],
        empty=torch.zeros(0, 3),
    )
    checkpoint = {
        "epoch": 3,
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "best_pred": np.float64(0.7),
    }
    path, flat = tmp_path / "checkpoint.pth.tar", tmp_path / "flat.pth"
    options = {
        "_use_new_zipfile_serialization": form == "zip",
        "pickle_protocol": protocol,
    }
    torch.save(checkpoint, path, **options)
    torch.save(state, flat, **options)
    expected = {
        name: (value.float() if name == "wide" else value).detach().contiguous().numpy()
        for name, value in state.items()
    }
    loaded = load(path, lambda names: [name for name in names if name.startswith("state_dict.")])
    _assert_same(loaded, {f"state_dict.{name}": value for name, value in expected.items()})
    _assert_same(load(flat), expected)
    assert all(array.flags.c_contiguous for array in loaded.values())
    assert np.shares_memory(loaded["state_dict.row"], loaded["state_dict.rows"])
    assert load(path).keys() - loaded.keys() == {
        f"optimizer.state.{i}.momentum_buffer" for i in range(4)
    }


def test_torch_loads_what_was_saved(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {name: value.numpy() + 1 for name, value in model.state_dict().items()}
    path = tmp_path / "model.pth"
    save(state, path)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    _assert_same({name: value.numpy() for name, value in model.state_dict().items()}, state)
    # Without the counters too: PyTorch fills them in, as the file names no version of BatchNorm.
    save({name: value for name, value in state.items() if "tracked" not in name}, path)
    mapped = torch.load(path, weights_only=True, mmap=True)
    model.load_state_dict(mapped, strict=True)
    assert all(value.data_ptr() % 64 == 0 for value in mapped.values())


@pytest.mark.parametrize("form", FORMATS)
def test_a_whole_module_is_refused_with_the_way_out(form, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=form == "zip")
    _refused(path, r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict\(\)")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("call", [b"R", b"\x81"])  # REDUCE, NEWOBJ
def test_parameters_of_early_releases(call, form, tmp_path):
    """As in the files of torchvision's first models: a call of the class, then its state."""
    entry = b"ctorch.nn.parameter\nParameter\n" + _tensor() + b"\x88\x86" + call
    state = _opcodes({"_backward_hooks": None}) + b"b"
    path = _write(tmp_path / "old.pth", form, _dict(weight=entry, bias=entry + state))
    _assert_same(load(path), {"weight": PAIR, "bias": PAIR})


def test_a_file_of_python_2_with_a_view(tmp_path):
    def text(value):
        return b"U" + bytes([len(value)]) + value

    view = (("view", 1, 2),)
    entry = _tensor((1, 2), (2**62, 1), kind="HalfStorage", numel=4, view=view)
    entry = entry.replace(b"tensor_v2", b"tensor").replace(b"\x89NtR", b"tR")
    pairs = b"](](" + text(b"a.weight") + entry + b"ee"
    body = b"ccollections\nOrderedDict\n" + pairs + b"\x85R}" + text(b"_metadata") + b"]sb"
    path = _write(tmp_path / "old.pth", "legacy", body, {"0": np.float16([0, 1, 2, 3])})
    _assert_same(load(path), {"a.weight": np.float16([[1, 2]])})


def _attacks(marker):
    system = b"cos\nsystem\n"
    shell, python = _opcodes(f"touch {marker}"), _opcodes(f"open({str(marker)!r}, 'w')")
    bound = b"ccollections\nOrderedDict\n)R}" + _opcodes("__setstate__") + system + b"sb"
    mapped = b"cbuiltins\nmap\ncbuiltins\neval\n]" + python + b"a\x86\x81"
    return {
        "REDUCE": system + shell + b"\x85R",
        "STACK_GLOBAL": _opcodes("os") + _opcodes("system") + b"\x93" + shell + b"\x85R",
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
    path = _write(tmp_path / "model.pth", form, _dict(a=body, b=_tensor()))
    _refused(path, r"asks for ('os\.system'|'builtins\.(tuple|eval)'|INST)")
    assert not marker.exists()


NESTED = b"N" + b"\x85" * 60_000
HOSTILE = {
    "impossible shape": {
        "before the storage": _dict(a=_tensor(start=-1)),
        "negative shape": _dict(a=_tensor((-2,))),
        "negative stride": _dict(a=_tensor((2,), (-1,), 1)),
        "negative storage": _dict(a=_tensor(numel=-2, shape=(0,))),
        "negative view": _dict(a=_tensor((1,), view=(("v", -1, 1),))),
        "too few strides": _dict(a=_tensor((1, 1))),
        "many dimensions": _dict(a=_tensor((1,) * 9, (1,) * 9)),
        "shape of truths": _dict(a=_tensor((True,))),
        "shape of fractions": _dict(a=_tensor((1.0,))),
        "shape of tuples": _dict(a=_tensor(((1,),))),
    },
    "larger than its storage": {
        "large shape": _dict(a=_tensor((2**40,))),
        "large start": _dict(a=_tensor(start=1)),
        "huge start": _dict(a=_tensor(start=2**62)),
        "huge stride": _dict(a=_tensor((2,), (2**61,))),
        "overlapping strides": _dict(a=_tensor((3,), (0,))),
        "overflowing product": _dict(a=_tensor((2**32, 2**32), (0, 0))),
    },
    "larger than the file": {
        "empty of a large shape": _dict(a=_tensor((0, 2**62), (1, 1))),
        "huge storage": _dict(a=_tensor((2**60,), numel=2**60)),
    },
    "storage": {
        "smaller than in the file": _dict(a=_tensor((1,), numel=1)),
        "larger than in the file": _dict(a=_tensor(numel=2**62)),
        "not in the file": _dict(a=_tensor(key="1")),
    },
    "makes no sense": {
        "storage of two types": _dict(a=_tensor(), b=_tensor(kind="IntStorage")),
        "storage of no type": _dict(a=_tensor(kind="Size")),
        "deep key": b"}" + NESTED + b"Ns",
        "unhashable key": b"}]Ns",
        "keys of one hash": _opcodes({2**61 - 1: 1, 2 * (2**61 - 1): 1, 2**80: 1}),
        "a key twice": _dict(a=_tensor()) + _opcodes("a") + b"Ns",
        "pairs that are none": b"ccollections\nOrderedDict\n" + _opcodes(([1],)) + b"R",
        "digits": b"I" + b"9" * 100_000 + b"\n",
        "text without end": b"X\xff\xff\xff\xff",
        "bytes without end": b"B\xff\xff\xff\xff",
        "bad text": b"X\x01\x00\x00\x00\xff",
        "unknown opcode": b"\xff",
        "empty stack": b"\x85",
        "no mark": b"t",
        "no memo": b"h\x07",
        "items of no list": b"NNa",
    },
    "asks for": {
        "long integer": b"\x8b" + struct.pack("<i", 10**5) + b"\x01" * 10**5,
        "line break in a name": _opcodes("a\nb") + _opcodes("c" * 10**4) + b"\x93",
    },
    "more than weights": {"many steps": b"}" * 400_000},
    "no state dict": {
        "itself": b"]\x94h\x00a",
        "deep": NESTED,
        "deep dictionaries": b"}X\x01\x00\x00\x00a" * 1000 + _tensor() + b"s" * 1000,
        "tuple": b")",
        "itself as state dict": b"}\x94" + _opcodes("state_dict") + b"h\x00s",
        "number": _dict(state_dict=_dict(epoch=b"K\x01")),
    },
    "a name of over 300": {"long name": _dict(**{"a" * 1000: _tensor()})},
    "two tensors are called 'a.b'": {
        "names that meet": _dict(**{"a.b": _tensor(), "a": _dict(b=_tensor(key="1"))}),
    },
}


def test_tensors_in_containers_are_named_after_them(tmp_path):
    body = _dict(net=_dict(a=_tensor(), b=b"](" + _tensor() + b"K\x01e"), epoch=b"K\x05")
    path = _write(tmp_path / "model.pth", "zip", body)
    _assert_same(load(path), {"net.a": PAIR, "net.b.0": PAIR})
    _assert_same(load(path, lambda names: ["net.a"]), {"net.a": PAIR})


@pytest.mark.parametrize("form", FORMATS)
def test_settings_beside_the_weights_are_not_made(form, tmp_path):
    """Lightning keeps hyperparameters, scripts their arguments: named in a table, never called."""

    def call(name, arguments=b")"):
        return b"c" + name.replace(b".", b"\n") + b"\n" + arguments + b"R"

    attributes = b"clightning.fabric.utilities.data\nAttributeDict\n)\x81}" + _opcodes("x") + b"Nsb"
    path_ = b"cpathlib\nPosixPath\n" + _opcodes("runs") + b"\x85R"
    body = _dict(
        a=_tensor(),
        arguments=b"cargparse\nNamespace\n)\x81}" + _opcodes("lr") + b"Nsb",
        hyper_parameters=attributes + b"(" + _opcodes("lr") + b"K\x01u",
        path=path_,
        counts=b"ccollections\ndefaultdict\n" + b"cbuiltins\nint\n\x85R",
        device=call(b"torch.device", _opcodes("cpu") + b"\x85"),
    )
    _assert_same(load(_write(tmp_path / "model.pth", form, body)), {"a": PAIR})


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
    _assert_same(load(_write(path, form, _dict(a=_tensor()))), {"a": PAIR})
    _refused(_write(path, form, body), match)


@pytest.mark.parametrize("form", FORMATS)
def test_a_storage_named_by_thousands_of_tensors_is_refused(form, tmp_path):
    array = np.zeros(20_000, np.float32)
    entries = {f"t{i}": _tensor((array.size,), numel=array.size) for i in range(1000)}
    _refused(
        _write(tmp_path / "model.pth", form, _dict(**entries), {"0": array}), "larger than the file"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_storage_is_refused(form, tmp_path):
    _refused(_write(tmp_path / "model.pth", form, _dict(a=_tensor()), {}), "'0' is missing")


def test_a_legacy_file_with_false_storages_is_refused(tmp_path):
    used, path = _tensor(numel=2**62), tmp_path / "model.pth"
    for body in (_dict(a=used), _dict(state_dict=_dict(), optimizer=used)):
        content = _write(path, "legacy", body).read_bytes()
        path.write_bytes(content.replace(struct.pack("<q", 2), struct.pack("<q", 2**62)))
        _refused(path, "data is missing")
        path.write_bytes(content.replace(pickle.dumps(["0"], 2), b"\x80\x02]]a."))
        _refused(path, "not those")


def _zip(path, *entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_files_that_torch_does_not_write_are_refused(tmp_path):
    path, body = tmp_path / "model.pth", b"\x80\x02" + _dict(a=_tensor()) + b"."
    pickled, data = ("x/data.pkl", body), ("x/data/0", PAIR.tobytes())
    _refused(_zip(path, pickled, ("x/data/0", bytes(10**6)), method=zipfile.ZIP_DEFLATED), "compr")
    _refused(_zip(path, pickled, data, data), "contradicts")
    _refused(_zip(path, data), "not one of torch")
    _refused(_zip(path, pickled, data, ("x/constants.pkl", b"")), "TorchScript")
    _refused(_zip(path, pickled, data, ("x/byteorder", b"big")), "big-endian")
    _refused(_zip(path, ("x/data.pkl", bytes(3 * 2**20))), "more than weights")
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
        _refused(path, match)


def test_other_files_are_refused(tmp_path):
    _refused(tmp_path / "none.pth", "no such file")
    _refused(tmp_path, "no such file")
    for content, match in (
        (b"", "not a file of torch"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "not a file of torch"),
        (bytes(257) + b"ustar" + bytes(600), r"PyTorch 0\.1"),
        (pickle.dumps({"a": 1}), "not a file of torch"),
    ):
        path = tmp_path / "model.pth"
        path.write_bytes(content)
        _refused(path, match)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of a state dict in either format."""
    folder = tmp_path_factory.mktemp("originals")
    save(STATE, folder / "zip")
    storages = {"0": PAIR, "7": np.arange(6), "1": np.float16([1, 2, 3]), "9": np.zeros(0, "f4")}
    state = _dict(
        weight=_tensor((2, 2), (1, 2), key="7", numel=6, kind="LongStorage"),
        bias=_tensor(key="0"),
        view=_tensor((1,), key="1", numel=3, kind="HalfStorage", view=(("v", 1, 2),)),
    )
    momentum = _tensor((0,), key="9", numel=0)
    body = _dict(state_dict=state, epoch=b"K\x05", optimizer=_dict(momentum=momentum))
    _write(folder / "legacy", "legacy", body, storages)
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
            _assert_same(loaded, STATE)


@pytest.mark.parametrize(
    "body",
    [
        b"N" + b"\x94" * 10**6,
        b"}\x94" * 10**6,
        b"X\x00\x00\x1e\x00\xf0\x9f\x98\x80" + b"a" * 0x1DFFFC + b"}\x94" * 50_000,
        _tensor() + b"q\x09}(" + b"".join(b"U\x05%05dh\x09" % i for i in range(20_000)) + b"u",
        b"ccollections\nOrderedDict\n\x94]("
        + b"".join(b"K%cN\x86" % i for i in range(100))
        + b"e\x85\x94"
        + b"h\x00h\x01R" * 20_000,
    ],
    ids=["memo", "dictionaries", "text", "names", "pairs"],
)
def test_a_pickle_cannot_take_memory_that_its_file_does_not_have(body, tmp_path):
    assert _load_bounded(_write(tmp_path / "model.pth", "legacy", body)) is None
