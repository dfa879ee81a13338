"""HistoSegNet starts from torchvision's VGG16, of whose file the first three blocks are read."""

import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from configs import base_histosegnet, base_tools
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_files, torch_names, weights
from wsss_jax.methods import histosegnet
from wsss_jax.training.initialization import initialize_variables

CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def _vgg16(wrong: dict | None = None) -> dict[str, np.ndarray]:
    """A state dict with the names and shapes of `vgg16-397923af.pth`, the classifier smaller."""
    rng = np.random.default_rng(0)
    arrays, index, depth = {}, 0, 3
    for channels in CHANNELS:  # 0: pooling
        if channels:
            kernel = rng.normal(size=(channels, depth, 3, 3))
            arrays[f"features.{index}.weight"] = kernel
            arrays[f"features.{index}.bias"] = rng.normal(size=channels)
            depth, index = channels, index + 1
        index += 1
    for index in (0, 3, 6):
        arrays[f"classifier.{index}.weight"] = rng.normal(size=(10, 10))
        arrays[f"classifier.{index}.bias"] = rng.normal(size=10)
    arrays |= wrong or {}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _configure(path, width=1.0) -> ml_collections.ConfigDict:
    config = base_histosegnet.histosegnet("luad_histoseg")
    config.model.width, config.init = width, str(path)
    return config


def _initialize(path, width=1.0):
    config = _configure(path, width)
    return initialize_variables(config, histosegnet.build_network(config, 4))


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_convolutions_come_from_the_file_and_all_else_is_drawn(kind, tmp_path, capsys):
    state_dict, path = _vgg16(), tmp_path / f"vgg16-397923af.{kind}"
    assert [name for name in state_dict if name.endswith("weight")][:13] == [
        f"features.{index}.weight" for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    ]
    if kind == "pth":
        torch_files.save(state_dict, path)
    else:
        safetensors.numpy.save_file(state_dict, path)
    assert not [name for name in weights.read(path).arrays if name.startswith("classifier")]
    variables, report = _initialize(path)
    flat = torch_names.to_torch(variables)
    for index in (0, 2, 5, 7, 10, 12, 14):
        for leaf in ("weight", "bias"):
            name = f"features.{index}.{leaf}"
            np.testing.assert_array_equal(flat[name], state_dict[name])
    assert len(report.loaded) == 14
    assert {entry.name.partition(".")[0] for entry in report.initial} == {"bn1", "bn2", "bn3", "fc"}
    assert len(report.unused) == 12  # convolutions of the last two blocks
    assert "ImageNet weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"features.7.weight": np.ones((128, 64, 3, 3))},
            r"features\.7\.weight \(128, 128, 3, 3\)",
        ),
        ({"features.1.weight": np.ones(64)}, r"features\.1\.weight \(64,\) of the file is not in"),
        ({"features.14.bias": np.ones(3)}, r"features\.14\.bias \(256,\) of the network is of the"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(wrong, words, tmp_path):
    path = tmp_path / "vgg.pth"
    torch_files.save(_vgg16(wrong), path)
    with pytest.raises(InputError, match=words) as caught:
        _initialize(path)
    assert "\n" not in str(caught.value) and "--config.strict=False" in str(caught.value)


def test_imagenet_weights_need_the_whole_width(tmp_path):
    torch_files.save(_vgg16(), tmp_path / "vgg.pth")
    with pytest.raises(
        InputError, match=r"features\.0\.bias \(8,\) of the network is of the shape \(64,\)"
    ):
        _initialize(tmp_path / "vgg.pth", width=1 / 8)


def test_a_checkpoint_of_histosegnet_fills_everything(tmp_path):
    config = _configure("", width=1 / 16)
    before, _ = initialize_variables(config, histosegnet.build_network(config, 4))
    torch_files.save(torch_names.to_torch(before), tmp_path / "mine.pth")
    variables, report = _initialize(tmp_path / "mine.pth", width=1 / 16)
    assert not report.initial and not report.unused
    for name, array in torch_names.to_torch(before).items():
        np.testing.assert_array_equal(torch_names.to_torch(variables)[name], array)


def test_other_jobs_say_that_it_is_not_theirs(tmp_path):
    torch_files.save(_vgg16(), tmp_path / "vgg.pth")
    config = base_tools.convert("luad_histoseg")
    config.weights = str(tmp_path / "vgg.pth")
    with pytest.raises(
        InputError,
        match=r"\.json is not beside it, .*, or train from the weights with --config\.init",
    ):
        jobs.run(config, tmp_path / "run")


def test_a_vgg_within_another_checkpoint_is_not_the_network(tmp_path):
    network = {"conv1a.weight": np.ones((4, 3, 3, 3)), "b2.bn_branch2a.weight": np.ones(4)}
    network = {name: array.astype(np.float32) for name, array in network.items()}
    loss = {f"loss.{name}": array for name, array in _vgg16().items()}
    torch_files.save({**network, **loss}, tmp_path / "both.pth")
    assert weights.find_method(weights.read(tmp_path / "both.pth")) == "phase1"
