import csv

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base
from tests.golden import reference
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_files, weights
from wsss_jax.parity import compare, golden, numbers


def _row(found, recorded):
    (row,) = compare.compare({"forward/b2": golden.whole(recorded)}, {"forward/b2": found})
    return row


def test_a_difference_is_a_share_of_the_largest_value():
    recorded = np.array([[100.0, -200.0]], np.float32)
    row = _row(recorded + np.float32([[1e-3, 0]]), recorded)
    assert row.difference == pytest.approx(1e-3, rel=0.01) and row.share < row.tolerance
    assert row.verdict == "equal" and row.shape == (1, 2)
    row = _row(recorded + np.float32([[0, 3e-3]]), recorded)
    assert row.share == pytest.approx(1.5e-5, rel=0.01) and row.verdict == "DIFFERS"
    assert row._replace(rounding=1e-5).verdict == "rounding"
    assert row._replace(rounding=1e-6).verdict == "DIFFERS"
    assert row._replace(share=0.6, rounding=1.0).verdict == "DIFFERS"


def test_rounding_excuses_what_it_does_and_no_more():
    rates = np.float32([1, 2])

    def compute(weights):
        # Ill-conditioned in one tensor, not at all in the others.
        value = weights["w"]
        steep = 1e4 * (value - np.float32(1)) + 1
        return {"grad/a": steep, "grad/b": value, "grad/c": value, "train/learning_rates": rates}

    state_dict = {"w": np.ones(50, np.float32)}
    found = compute(state_dict)
    other = {name: value * np.float32(1.002) for name, value in found.items()}
    expected = {name: golden.whole(value) for name, value in other.items()}
    rows = compare.compare(expected, found)
    assert {row.verdict for row in rows} == {"DIFFERS"}
    rows = compare.with_rounding(rows, expected, found, compute, state_dict, "float32")
    assert [row.verdict for row in rows] == ["rounding", "DIFFERS", "DIFFERS", "DIFFERS"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_differs(value):
    assert _row(np.array([value]), np.array([1.0])).verdict == "DIFFERS"
    assert _row(np.array([1.0]), np.array([value])).verdict == "DIFFERS"


def test_label_maps_are_compared_by_pixels():
    recorded = np.zeros((100, 100), np.uint8)
    found = recorded.copy()
    found[0, :10] = 3
    assert _row(found, recorded).verdict == "equal" and _row(found, recorded).difference == 10
    found[0, 10] = 1
    assert _row(found, recorded).verdict == "DIFFERS"


def test_a_sample_is_compared_where_it_was_taken():
    whole = np.arange(24.0).reshape(2, 3, 4)
    recorded = golden.Recorded((2, 3, 4), np.array([5.0, 7.0]), np.array([5, 7]), 23.0)
    other = whole.copy()
    other[0, 0, 0] = 100  # not in the sample
    (row,) = compare.compare({"grad/a": recorded}, {"grad/a": other})
    assert row.difference == 0
    other[0, 1, 1] += 1
    (row,) = compare.compare({"grad/a": recorded}, {"grad/a": other})
    assert row.share == pytest.approx(1 / 23)


@pytest.mark.parametrize("found", [{}, {"forward/b2": np.zeros(3)}])
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(found):
    with pytest.raises(InputError, match="forward/b2 has the shape"):
        compare.compare({"forward/b2": golden.whole(np.zeros(2))}, found)


def _config(tmp_path, phase, **fields):
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    for index, image in enumerate(reference.images(f"phase{phase}")):
        Image.fromarray(image).save(images / f"{index}.png")
    config = base.compare()
    config.update({"phase": phase, "images": str(images), **fields})
    config.golden = config.golden or str(reference.path(f"phase{phase}"))
    return config


def _verdicts(workdir):
    with (workdir / compare.TABLE_FILE).open() as file:
        return {row["name"]: row["verdict"] for row in csv.DictReader(file)}


def test_the_recorded_numbers_of_phase_1(tmp_path, capsys):
    weights.save_safetensors(reference.state_dict("phase1"), tmp_path / "weights.safetensors")
    config = _config(tmp_path, 1, weights=str(tmp_path / "weights.safetensors"))
    assert compare.run(config, tmp_path / "run")
    verdicts = _verdicts(tmp_path / "run")
    assert len(verdicts) == 64
    # Grad-CAM of the lower layers hinges on single ReLUs near zero.
    assert {v for k, v in verdicts.items() if golden.kind(k) != "gradcam"} == {"equal"}
    assert "0 different" in capsys.readouterr().out


def test_the_recorded_numbers_of_phase_2(tmp_path):
    """In training mode rounding drowns: the pooling branch normalizes over three values."""
    state_dict = {f"module.{k}": v for k, v in reference.state_dict("phase2").items()}
    torch_files.save(state_dict, tmp_path / "weights.pth")
    config = _config(tmp_path, 2, weights=str(tmp_path / "weights.pth"))
    config.record = str(tmp_path / "again.npz")
    assert compare.run(config, tmp_path / "run")
    with pytest.raises(InputError, match=r"again\.npz is there already: move it or name another"):
        compare.run(config, tmp_path / "run")
    verdicts = _verdicts(tmp_path / "run")
    ill = ("train", "grad", "running", "after3")
    assert {v for k, v in verdicts.items() if golden.kind(k) not in ill} == {"equal"}
    assert verdicts["train/learning_rates"] == verdicts["grad/decoder.last_conv.8.bias"] == "equal"
    recorded = golden.load(tmp_path / "again.npz", 2)
    assert set(verdicts) <= recorded.tensors.keys() and len(recorded.tensors) > 900


@pytest.mark.parametrize("phase", [1, 2])
def test_in_float64_this_system_and_pytorch_are_one(phase):
    """Forward, backward and three optimizer steps, where rounding hides nothing."""
    pytest.importorskip("torch")
    from wsss_jax.parity import torch_networks, torch_numbers

    classes, size, examples = 3, (50, 66), 3  # sizes that no stride divides
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, *size, 3), dtype=np.uint8)
    images[:, :12, :12] = 240  # white
    settings = numbers.settings(phase, "float64")
    settings.model.width = 1 / 16
    if phase == 1:
        network = torch_networks.ResNet38(classes, width=1 / 16)
    else:
        settings.model.blocks = (1, 2, 1, 2)
        network = torch_networks.DeepLabV3Plus(classes, width=1 / 16, blocks=(1, 2, 1, 2))
    state_dict = {
        name: reference.tensor(name, tuple(tensor.shape))
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    given = golden.drawn_inputs(phase, examples, classes, size)
    torch_compute = torch_numbers.phase1 if phase == 1 else torch_numbers.phase2
    expected = torch_compute(state_dict, images, given, "float64")
    with jax.enable_x64(True):
        found = numbers.computer(phase, classes, images, given, settings)(state_dict)
    rows = compare.compare(
        {name: golden.whole(array) for name, array in expected.items()}, found, compare.FLOAT64
    )
    assert len(rows) > 200 and expected.keys() == found.keys()
    assert [row for row in rows if row.verdict != "equal"] == []


def test_what_does_not_belong_together_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    state_dict = {
        name: np.zeros(shape, np.float32) for name, shape in reference.shapes("phase2").items()
    }
    weights.save_safetensors(state_dict, path)
    config = _config(tmp_path, 2, weights=str(path))

    def refused(words, **fields):
        changed = config.copy_and_resolve_references()
        changed.update(fields)
        with pytest.raises(InputError, match=words):
            compare.run(changed, tmp_path / "run")

    refused(r"no fc8\.weight in it.*--config\.phase", phase=1)
    refused("no PNG in", images=str(tmp_path / "none"))
    refused("no such file", weights=str(tmp_path / "none.pth"))
    (tmp_path / "images" / "._0.png").write_bytes(b"macOS")
    (tmp_path / "images" / "2.png").unlink()
    refused(r"targets has the shape \(3, 3, 112, 112\), .* ask for \(3, 2, 112, 112\)")
    Image.fromarray(np.zeros((100, 112, 3), np.uint8)).save(tmp_path / "images" / "2.png")
    refused("2.png has 100x112 pixels and 0.png 112x112")
    Image.fromarray(reference.images("phase2")[2]).save(tmp_path / "images" / "2.png")
    del state_dict["backbone.bn1.bias"]
    weights.save_safetensors(state_dict, path)
    refused(r"backbone\.bn1\.bias \(64,\) of the network is not in the file")
    assert not (tmp_path / "run").exists()
