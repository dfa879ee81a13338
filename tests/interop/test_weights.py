import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.interop.mxnet_writer import array_list, encode
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_files, weights
from wsss_jax.interop.torch_names import to_torch

SHAPES = {
    "conv1a.weight": (4, 3, 3, 3),
    "b2.bn_branch2a.weight": (4,),
    "b2.bn_branch2a.running_var": (4,),
    "fc8.weight": (3, 4, 1, 1),
}


def _state_dict(shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _weights_of(arrays, **fields):
    return weights.Weights("file.pth", "PyTorch", arrays, **fields)


def _zeros(names):
    return {name: np.zeros(SHAPES[name], np.float32) for name in names}


def _fit(source, strict=True):
    variables, report = weights.fit(
        source, SHAPES, _zeros, strict=strict, remedy="use another file"
    )
    return to_torch(variables), report


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "net.encoder.",
        "state_dict.model._orig_mod.",
        "module.module.",
        "_fsdp_wrapped_module.",
    ],
)
def test_pytorch_names_come_without_wrappers_and_counters(tmp_path, prefix):
    state_dict = _state_dict()
    stored = {f"{prefix}{name}": value for name, value in state_dict.items()}
    stored[f"{prefix}b2.bn_branch2a.num_batches_tracked"] = np.array(7)
    stored["n_averaged"] = np.array(7)
    torch_files.save(stored, tmp_path / "a.pth")
    weights.save_safetensors(stored, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        read = weights.read(tmp_path / name)
        assert read.arrays.keys() == state_dict.keys()
        for key, value in state_dict.items():
            np.testing.assert_array_equal(read.arrays[key], value)
        assert weights.find_method(read) == "phase1" and weights.count_classes(read, "phase1") == 3


def test_a_wrapper_may_have_the_name_of_a_block():
    for wrapper in ("backbone.", "optim_model.", "optimal.", "grad_model."):
        read = weights.find_network("a", [f"{wrapper}{name}" for name in SHAPES])
        assert list(read.names.values()) == list(SHAPES)


def test_wrappers_within_a_network():
    names = ["backbone._orig_mod.conv1.weight", "backbone._orig_mod.bn1.weight", "aspp.module.a"]
    assert list(weights.find_network("a", names).names.values()) == [
        "backbone.conv1.weight",
        "backbone.bn1.weight",
        "aspp.a",
    ]


@pytest.mark.parametrize(
    ("chosen", "others"),
    [
        ("state_dict.", ["state_dict_ema.", "optimizer.state."]),
        ("", ["ema.", "optimizer.exp_avg."]),
        ("model.", ["model_ema.module.", "swa_model.module.", "teacher."]),
        ("ema_model.module.", ["optimizer_states.0.state."]),
        ("model.student.", ["model.student.ema.", "averaged_model.module."]),
    ],
)
def test_weights_as_trained_come_before_averages_and_optimizers(tmp_path, chosen, others):
    state_dict = _state_dict()
    stored = {f"{chosen}{name}": value for name, value in state_dict.items()}
    for place in others:
        stored |= {f"{place}{name}": value + 1 for name, value in state_dict.items()}
    stored["optimizer.param_groups.0.lr"] = np.array(0.1)
    stored = dict(sorted(stored.items(), reverse=True))
    torch_files.save(stored, tmp_path / "a.pth")
    read = weights.read(tmp_path / "a.pth")
    assert read.arrays.keys() == state_dict.keys()
    for key, value in state_dict.items():
        np.testing.assert_array_equal(read.arrays[key], value)
    averages = [place for place in others if "optim" not in place]
    assert all(place.rstrip(".") in read.kind for place in averages)


def test_several_networks_are_refused_by_where_they_are():
    for places in (["a.", "b."], ["", "b."], ["ema.", "teacher."], ["phase1.", "phase2."]):
        names = [f"{place}b2.conv_branch2a.weight" for place in places]
        if "phase2." in places:
            names[1] = "phase2.backbone.conv1.weight"
        with pytest.raises(InputError, match="holds several networks") as caught:
            weights.find_network("a.pth", names)
        assert all((place.rstrip(".") or "the top") in str(caught.value) for place in places)
    with pytest.raises(InputError, match="two tensors of one name"):
        weights.find_network("a.pth", ["b2.a.weight", "b2.module.a.weight"])


def test_an_optimizer_alone_is_no_network(tmp_path):
    path = tmp_path / "a.pth"
    torch_files.save({"optimizer.state.b2.conv.exp_avg": np.ones(3, np.float32)}, path)
    with pytest.raises(InputError, match=r"neither ResNet38 nor DeepLabV3\+ \(it has optimizer"):
        weights.read(path)


def test_checkpoints_of_torch_as_people_save_them(tmp_path):
    """Compiled, averaged, in the containers of training programs, next to an optimizer."""
    torch = pytest.importorskip("torch")
    block = torch.nn.Module()
    block.conv_branch2a = torch.nn.Conv2d(3, 4, 1)
    network = torch.nn.Module()
    network.b2 = block
    averaged = torch.optim.swa_utils.AveragedModel(network)
    optimizer = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    lightning = {f"model.{name}": value for name, value in network.state_dict().items()}
    lightning |= {"criterion.weight": torch.ones(3), "accuracy.total": torch.tensor(3)}
    files = {
        "compiled": torch.compile(network).state_dict(),
        "averaged": averaged.state_dict(),
        "lightning": {
            "epoch": 3,
            "state_dict": lightning,
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": {"lr": 0.1},
        },
        "both": {"model": network.state_dict(), "model_ema": averaged.module.state_dict()},
    }
    for name, value in files.items():
        torch.save(value, tmp_path / f"{name}.pth")
        arrays = weights.read(tmp_path / f"{name}.pth").arrays
        source = averaged.module if name == "averaged" else network
        expected = {key: tensor.numpy() for key, tensor in source.state_dict().items()}
        assert arrays.keys() == expected.keys(), name
        for key, array in expected.items():
            np.testing.assert_array_equal(arrays[key], array)


def test_the_kind_of_a_file_follows_from_its_content_not_its_name(tmp_path):
    weights.save_safetensors(_state_dict(), tmp_path / "a.pth")
    (tmp_path / "usual").touch()  # readable by whoever the umask allows
    assert (tmp_path / "a.pth").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert weights.read(tmp_path / "a.pth").kind == "safetensors"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_become_float32(tmp_path, dtype):
    value = np.array([1, -2, 0.5], dtype)
    safetensors.numpy.save_file({"conv1a.weight": value}, tmp_path / "a.safetensors")
    read = weights.read(tmp_path / "a.safetensors").arrays["conv1a.weight"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, value.astype(np.float32))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "I64", "BOOL"])
def test_other_numbers_than_floats_are_refused_by_name(tmp_path, kind):
    size = 8 if kind == "I64" else 1
    entry = {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * size]}
    header = json.dumps({"conv1a.weight": entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2 * size))
    with pytest.raises(InputError, match=rf"conv1a\.weight holds {kind}.* save floats of 16 or 32"):
        weights.read(path)


def test_imagenet_weights_of_resnet38(tmp_path):
    arrays = {
        "arg:conv1a_weight": np.ones((4, 3, 3, 3), np.float32),
        "arg:bn2a_branch2a_gamma": np.full(4, 2, np.float32),
        "aux:bn2a_branch2a_moving_var": np.full(4, 3, np.float32),
        "arg:linear1000_weight": np.ones((10, 4), np.float32),
    }
    contents = array_list([encode("V1", a) for a in arrays.values()], [k.encode() for k in arrays])
    (tmp_path / "imagenet.params").write_bytes(contents)
    state_dict, report = _fit(weights.read(tmp_path / "imagenet.params"))
    assert [entry[0] for entry in report.initial] == ["fc8.weight"]
    assert [entry[0] for entry in report.unused] == ["linear1000_weight"]
    assert (state_dict["b2.bn_branch2a.weight"] == 2).all()
    assert (state_dict["b2.bn_branch2a.running_var"] == 3).all()
    assert (state_dict["fc8.weight"] == 0).all()


def test_imagenet_weights_of_torchvision(tmp_path):
    names = ("conv1.weight", "layer1.0.conv1.weight", "fc.weight")
    torch_files.save({name: np.ones((2, 2), np.float32) for name in names}, tmp_path / "a.pth")
    read = weights.read(tmp_path / "a.pth")
    assert list(read.arrays) == [
        "backbone.conv1.weight",
        "backbone.layer1.0.conv1.weight",
        names[2],
    ]
    assert weights.find_method(read) == "phase2" and weights.count_classes(read, "phase2") is None
    assert "aspp.conv1.weight".startswith(read.missing) and "fc.weight".startswith(read.extra)


def test_weights_that_fit_are_loaded_whole():
    state_dict = _state_dict()
    filled, report = _fit(_weights_of(state_dict))
    assert [name for name, _, _ in report.loaded] == list(SHAPES)
    assert not report.initial and not report.unused
    for name, value in state_dict.items():
        np.testing.assert_array_equal(filled[name], value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"fc8.weight": np.ones((7, 4, 1, 1))},
            r"fc8.weight \(3, 4, 1, 1\) .* \(7, 4, 1, 1\) in the file",
        ),
        ({"fc8.weight": None}, r"fc8.weight \(3, 4, 1, 1\) .* not in the file"),
        ({"fc9.weight": np.ones(2)}, r"fc9.weight \(2,\) .* is not in the network"),
    ],
)
def test_weights_that_do_not_fit_are_refused_unless_not_strict(change, words):
    arrays = {k: v for k, v in (_state_dict() | change).items() if v is not None}
    with pytest.raises(InputError, match=words + ".*; use another file"):
        _fit(_weights_of(arrays))
    filled, report = _fit(_weights_of(arrays), strict=False)
    assert set(filled) == set(SHAPES)
    (name,) = change
    text = weights.summarize(report)
    assert f"{name} " in text and "loaded: " in text
    if name == "fc8.weight":
        assert (filled[name] == 0).all() and "left at its initial value: fc8.weight" in text
    else:
        assert "in the file but not used: fc9.weight" in text


def test_weights_of_another_network_are_refused_even_then():
    with pytest.raises(InputError, match="nothing in it fits"):
        _fit(_weights_of({"backbone.conv1.weight": np.ones(3)}), strict=False)
    with pytest.raises(InputError, match=r"neither ResNet38 nor DeepLabV3\+ \(it has encoder"):
        weights.find_method(_weights_of({"encoder.weight": np.ones(3)}))


def test_many_missing_tensors_are_counted_by_module(tmp_path):
    names = [f"aspp.conv{i}.weight" for i in range(20)]
    missing = [
        weights.Entry(name, (1,), "not in the file")
        for name in [*names[:9], "fc8.weight", *names[9:]]
    ]
    report = weights.Report("a.pth", [weights.Entry("conv1a.weight", (2, 3))], missing, [])
    assert weights.summarize(report).splitlines()[1:] == [
        "  loaded: 1 of 22 tensors, 6 values",
        "  left at its initial value: aspp, 20 tensors: not in the file",
        "  left at its initial value: fc8.weight (1,): not in the file",
    ]
    weights.write_report(report, tmp_path / "init.txt")
    assert all(name in (tmp_path / "init.txt").read_text() for name in names)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([1, np.nan], np.float32), "not finite"),
        (np.array([1e300]), "not finite"),
        (np.array([1, 2]), "holds int64, not weights"),
    ],
)
def test_values_that_are_not_weights_are_refused_by_name(tmp_path, value, words):
    torch_files.save({"conv1a.weight": value}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth: conv1a\.weight .*{words}"):
        weights.read(tmp_path / "a.pth")


def test_a_path_without_a_file_is_refused(tmp_path):
    for path, words in ((tmp_path, "is a folder without a run"), (tmp_path / "a", "no such")):
        with pytest.raises(InputError, match=words):
            weights.read(path)


def _read_or_refuse(path):
    """Reads within the memory bound; a refusal is one line that names the file."""
    tracemalloc.start()
    try:
        weights.read(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3 * path.stat().st_size + 20e6


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_safetensors_file_is_read_or_refused(tmp_path, data):
    contents = bytearray(safetensors.numpy.save(_state_dict()))
    head = int.from_bytes(contents[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of the bytes are values; most of what can go wrong is in the header.
        place = data.draw(st.integers(0, min(len(contents), head) - 1))
        contents[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(contents))))
    path = tmp_path / "a.safetensors"
    path.write_bytes(contents[:cut])
    _read_or_refuse(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}',
        b'{"a":{"dtype":"F32","shape":[],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":' * 5000,
        json.dumps({"b2.a": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}).encode(),
        b"{}",
    ],
)
def test_absurd_safetensors_headers_are_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        weights.read(path)
    path.write_bytes((2**60).to_bytes(8, "little") + header)
    _read_or_refuse(path)
