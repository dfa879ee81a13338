import tracemalloc

import numpy as np
import pytest

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
from wsss_jax.interop.torch_files import load, save


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "model.pth"
    transposed = np.arange(6, dtype=np.int16).reshape(2, 3).T
    save({**STATE, "transposed": transposed}, path)
    loaded = load(path)
    check_same(loaded, {**STATE, "transposed": transposed})
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
    check_same(loaded, state)
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
    check_same(loaded, {f"state_dict.{name}": value for name, value in expected.items()})
    check_same(load(flat), expected)
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
    check_same({name: value.numpy() for name, value in model.state_dict().items()}, state)
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
    check_refused(path, r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict\(\)")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("call", [b"R", b"\x81"])  # REDUCE, NEWOBJ
def test_parameters_of_early_releases(call, form, tmp_path):
    """As in the files of torchvision's first models: a call of the class, then its state."""
    entry = b"ctorch.nn.parameter\nParameter\n" + tensor() + b"\x88\x86" + call
    state = opcodes({"_backward_hooks": None}) + b"b"
    path = write_file(tmp_path / "old.pth", form, dictionary(weight=entry, bias=entry + state))
    check_same(load(path), {"weight": PAIR, "bias": PAIR})


def test_a_file_of_python_2_with_a_view(tmp_path):
    def text(value):
        return b"U" + bytes([len(value)]) + value

    view = (("view", 1, 2),)
    entry = tensor((1, 2), (2**62, 1), kind="HalfStorage", numel=4, view=view)
    entry = entry.replace(b"tensor_v2", b"tensor").replace(b"\x89NtR", b"tR")
    pairs = b"](](" + text(b"a.weight") + entry + b"ee"
    body = b"ccollections\nOrderedDict\n" + pairs + b"\x85R}" + text(b"_metadata") + b"]sb"
    path = write_file(tmp_path / "old.pth", "legacy", body, {"0": np.float16([0, 1, 2, 3])})
    check_same(load(path), {"a.weight": np.float16([[1, 2]])})


def test_tensors_in_containers_are_named_after_them(tmp_path):
    body = dictionary(net=dictionary(a=tensor(), b=b"](" + tensor() + b"K\x01e"), epoch=b"K\x05")
    path = write_file(tmp_path / "model.pth", "zip", body)
    check_same(load(path), {"net.a": PAIR, "net.b.0": PAIR})
    check_same(load(path, lambda names: ["net.a"]), {"net.a": PAIR})


@pytest.mark.parametrize("form", FORMATS)
def test_settings_beside_the_weights_are_not_made(form, tmp_path):
    """Lightning keeps hyperparameters, scripts their arguments: named in a table, never called."""

    def call(name, arguments=b")"):
        return b"c" + name.replace(b".", b"\n") + b"\n" + arguments + b"R"

    attributes = b"clightning.fabric.utilities.data\nAttributeDict\n)\x81}" + opcodes("x") + b"Nsb"
    path_ = b"cpathlib\nPosixPath\n" + opcodes("runs") + b"\x85R"
    body = dictionary(
        a=tensor(),
        arguments=b"cargparse\nNamespace\n)\x81}" + opcodes("lr") + b"Nsb",
        hyper_parameters=attributes + b"(" + opcodes("lr") + b"K\x01u",
        path=path_,
        counts=b"ccollections\ndefaultdict\n" + b"cbuiltins\nint\n\x85R",
        device=call(b"torch.device", opcodes("cpu") + b"\x85"),
    )
    check_same(load(write_file(tmp_path / "model.pth", form, body)), {"a": PAIR})
