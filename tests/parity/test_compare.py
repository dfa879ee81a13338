import csv
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base_tools
from tests.golden import reference
from wsss_jax import pixels
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_files, weights
from wsss_jax.jobs import compare
from wsss_jax.methods.contract import load_method
from wsss_jax.parity import golden, judgment, numbers

# The released code's phase 2 in float64 with all 341 gradients; the one in tests/golden has seven.
ALL_GRADIENTS = Path(__file__).parents[2].parent / "shared/parity/phase2_f64.npz"
# In float64, by kind or name: shares of the largest value, about ten times what was measured.
BOUNDS = {
    1: {
        "forward": 5e-14,
        "pda": 5e-14,
        "gradcam": 5e-14,
        "grad": 1e-14,
        "train": 5e-15,
        "after3": 1e-15,
        "pseudo_mask": 0,
        "phase1_segmentation": 0,
        "phase1_segmentation_label": 0,
    },
    2: {
        "forward": 1e-13,
        "gate": 0,
        "metrics": 1e-15,
        "train/logits": 5e-11,
        "grad": 5e-10,
        "running": 2e-12,
        "train/learning_rates": 1e-14,
        # Each step magnifies rounding a thousand times, see `judgment.PHASE2_STEPS`.
        "train": 1e-6,
        "after3": 5e-4,
    },
}
LOSSES = {1: [1e-14] * 3, 2: [1e-13, 5e-10, 1e-6]}  # of each step


def _config(tmp_path, phase, **fields):
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    for index, image in enumerate(reference.images(f"phase{phase}")):
        Image.fromarray(image).save(images / f"{index}.png")
    config = base_tools.compare()
    config.update({"phase": phase, "images": str(images), **fields})
    config.golden = config.golden or str(reference.path(f"phase{phase}"))
    return config


def _rows(workdir):
    with (workdir / compare.TABLE_FILE).open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def _verdicts(workdir):
    return {name: row["verdict"] for name, row in _rows(workdir).items()}


@pytest.mark.parametrize("phase", [1, 2])
def test_forward_passes_give_the_recorded_numbers(phase):
    """The released code's, at full width; the other numbers take minutes."""
    name = f"phase{phase}"
    config = numbers.make_config(phase, "float32")
    model = load_method(config.job).build_network(config, 4)
    image = pixels.scale(reference.images(name), config.model)
    logits, taps = jax.jit(partial(model.apply, train=False))(reference.variables(name), image)
    found = {path: np.moveaxis(value, -1, 1) for path, value in taps.items() if value.ndim == 4}
    found["logits"] = np.moveaxis(logits, -1, 1)
    recorded = golden.load(reference.path(name), phase).tensors
    compared = [path for path in found if f"forward/{path}" in recorded]
    assert len(compared) == {1: 19, 2: 5}[phase]
    for path in compared:
        expected, values = recorded[f"forward/{path}"], found[path].ravel()
        if expected.indices is not None:
            values = values[expected.indices]
        atol = 1e-5 * expected.absmax  # measured: 2e-6
        np.testing.assert_allclose(values, expected.values.ravel(), rtol=0, atol=atol, err_msg=path)


@pytest.mark.long
def test_the_recorded_numbers_of_phase_1(tmp_path, capsys):
    weights.save_safetensors(reference.state_dict("phase1"), tmp_path / "weights.safetensors")
    config = _config(tmp_path, 1, weights=str(tmp_path / "weights.safetensors"))
    assert compare.compare(config, tmp_path / "run")
    verdicts = _verdicts(tmp_path / "run")
    assert len(verdicts) == 64
    # Grad-CAM of the lower layers hinges on single ReLUs near zero.
    assert {v for k, v in verdicts.items() if golden.get_kind(k) != "gradcam"} == {"equal"}
    out = capsys.readouterr().out
    assert out.startswith("within rounding: float32 against float32, tolerance")
    assert "0 different" in out


@pytest.mark.long
def test_the_recorded_numbers_of_phase_2(tmp_path):
    """In training mode rounding is large: the pooling branch normalizes over three values."""
    state_dict = {f"module.{k}": v for k, v in reference.state_dict("phase2").items()}
    torch_files.save(state_dict, tmp_path / "weights.pth")
    config = _config(tmp_path, 2, weights=str(tmp_path / "weights.pth"))
    config.record = str(tmp_path / "again.npz")
    assert compare.compare(config, tmp_path / "run")
    with pytest.raises(InputError, match=r"again\.npz already exists; move it"):
        compare.compare(config, tmp_path / "run")
    verdicts = _verdicts(tmp_path / "run")
    ill = ("train", "grad", "running", "after3")
    assert {v for k, v in verdicts.items() if golden.get_kind(k) not in ill} == {"equal"}
    assert verdicts["train/learning_rates"] == verdicts["grad/decoder.last_conv.8.bias"] == "equal"
    recorded = golden.load(tmp_path / "again.npz", 2)
    assert set(verdicts) <= recorded.tensors.keys() and len(recorded.tensors) > 900


@pytest.mark.long
@pytest.mark.parametrize("phase", [1, 2])
def test_the_numbers_recorded_in_float64(phase, tmp_path, capsys):
    """Forward, backward and three optimizer steps at full width, where rounding hides nothing."""
    weights.save_safetensors(reference.state_dict(f"phase{phase}"), tmp_path / "weights")
    has_all = phase == 2 and ALL_GRADIENTS.is_file()
    path = ALL_GRADIENTS if has_all else reference.path(f"phase{phase}_f64")
    fields = {"weights": tmp_path / "weights", "golden": path, "record": tmp_path / "again.npz"}
    config = _config(tmp_path, phase, **{name: str(value) for name, value in fields.items()})
    config.precision = "float64"
    assert compare.compare(config, tmp_path / "run")
    assert capsys.readouterr().out.startswith("exact: float64 against float64, tolerance")
    bounds = BOUNDS[phase]
    rows = _rows(tmp_path / "run")
    assert len(rows) == {1: 65, 2: 364 if has_all else 30}[phase]
    assert {row["verdict"] for row in rows.values()} == {"equal"}
    shares = {name: float(row["share"]) for name, row in rows.items()}
    over = {
        name: share
        for name, share in shares.items()
        if share > bounds.get(name, bounds[golden.get_kind(name)])
    }
    assert over == {}
    computed, recorded = (golden.load(Path(config[name]), phase) for name in ("record", "golden"))
    losses, expected = (side.tensors["train/losses"].values for side in (computed, recorded))
    assert (abs(losses / expected - 1) <= LOSSES[phase]).all()


@pytest.mark.parametrize("phase", [1, 2])
def test_in_float64_this_system_and_pytorch_agree(phase):
    """Forward, backward and three optimizer steps, where rounding hides nothing."""
    pytest.importorskip("torch")
    from wsss_jax.parity import torch_networks, torch_numbers

    classes, size, examples = 3, (50, 66), 3  # sizes that no stride divides
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, *size, 3), dtype=np.uint8)
    images[:, :12, :12] = 240  # white
    settings = numbers.make_config(phase, "float64")
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
    inputs = golden.draw_inputs(phase, examples, classes, size)
    torch_compute = torch_numbers.phase1 if phase == 1 else torch_numbers.phase2
    expected = torch_compute(state_dict, images, inputs, "float64")
    with jax.enable_x64(True):
        computed = numbers.make_compute(phase, classes, images, inputs, settings)(state_dict)
    rows = judgment.compare(
        {name: golden.record_whole(array) for name, array in expected.items()},
        computed,
        judgment.Judgment(phase, "float64", "float64"),
    )
    assert len(rows) > 200 and expected.keys() == computed.keys()
    # Narrow networks magnify rounding less, so phase 2 is held to the tolerances of phase 1.
    strict = judgment.Judgment(1, "float64", "float64").tolerances()
    assert [
        row
        for row in rows
        if row.share > min(row.tolerance, strict.get(golden.get_kind(row.name), 1))
    ] == []


def test_weights_and_images_that_do_not_fit_are_refused(tmp_path):
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
            compare.compare(changed, tmp_path / "run")

    refused(r"has no fc8\.weight.*--config\.phase", phase=1)
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
