import json
from pathlib import Path

import numpy as np
import pytest

from configs import base, base_histosegnet, base_slides
from data import synthetic
from data.dataset import load_dataset
from wsss_jax import config as config_lib
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.slides.mapping import provenance
from wsss_jax.training.trained import load_trained

LUAD = load_dataset("luad_histoseg", "")


def _run(folder: Path, phase: str, dataset=LUAD, history: list | None = None, **fields) -> None:
    """The files that a run of three epochs leaves beside its weights."""
    config = {
        "phase1": base.phase1("luad_histoseg"),
        "phase2": base.phase2("masks"),
        "histosegnet": base_histosegnet.histosegnet("luad_histoseg"),
    }[phase]
    config.epochs, config.data.patch_size = 3, 224
    config.update_from_flattened_dict(fields)
    runs.save(config, dataset, folder)
    if history is not None:
        (folder / "history.json").write_text(json.dumps(history))


def _epochs(*scores: float | None, key: str = "miou") -> list[dict]:
    return [{"epoch": epoch, key: score} for epoch, score in enumerate(scores)]


def _config(tmp_path: Path, *phases: str):
    config = base_slides.segment("a.svs", "", "")
    config.mpp = 1.0
    for phase in phases:
        config[phase] = str(tmp_path / phase)
    return config


def test_networks_say_where_they_come_from(tmp_path):
    _run(tmp_path / "phase1", "phase1", history=_epochs(0.1, 0.9, 0.8, key="val_mean_f1"))
    _run(tmp_path / "phase2", "phase2", history=_epochs(0.5, 0.75, 0.7))
    origins = provenance.read_origins(_config(tmp_path, "phase1", "phase2"))
    assert list(origins) == ["phase1", "phase2"]
    assert provenance.describe(origins["phase2"]) == {
        "data set": "LUAD-HistoSeg",
        "resolution": "1 µm per pixel, patches of 224 pixels",
        "validation score": "mIoU 0.750 (best of 3 epochs)",
        "epochs": "3 of 3",
        "precision": "float32",
        "software version": config_lib.version(tmp_path / "phase2", "phase2"),
    }
    assert origins["phase1"].score == "mean F1 0.800 (last of 3 epochs)"
    assert provenance.list_warnings(origins, 1.0) == []
    json.dumps([origin._asdict() for origin in origins.values()])


@pytest.mark.parametrize(
    ("changes", "mpp", "words"),
    [
        ({"dataset": synthetic.DATASET}, 1.0, "Phase 2 was trained on tissue drawn by a program"),
        ({}, 0.5, "Phase 2 was trained at 1 micrometers per pixel and is used at 0.5: set"),
        ({"history": _epochs(0.5)}, 1.0, "Phase 2 was trained for 1 of 3 epochs only"),
        ({"history": None}, 1.0, "Phase 2 was trained for 0 of 3 epochs only"),
    ],
)
def test_what_speaks_against_a_network_is_said(tmp_path, changes, mpp, words):
    _run(tmp_path / "phase2", "phase2", **{"history": _epochs(0.5, 0.6, 0.7), **changes})
    origins = provenance.read_origins(_config(tmp_path, "phase2"))
    (warning,) = provenance.list_warnings(origins, mpp)
    assert warning.startswith(words)


def test_networks_are_named_by_their_methods(tmp_path):
    _run(tmp_path / "phase1", "histosegnet", history=_epochs(0.5))
    _run(tmp_path / "phase2", "phase2", history=_epochs(0.5))
    origins = provenance.read_origins(_config(tmp_path, "phase1", "phase2"))
    one, other = provenance.list_warnings(origins, 1.0)
    assert one.startswith("HistoSegNet was trained for 1 of 3") and other.startswith("Phase 2 was")
    names = [provenance.name_network(*item) for item in origins.items()]
    assert names == ["HistoSegNet", "phase 2"]
    fields = origins["phase1"]._asdict()
    del fields["method"]  # as version 0.3.0 wrote them
    assert provenance.name_network("phase1", provenance.Origin(**fields)) == "phase 1"


def test_converted_weights_have_no_history(tmp_path):
    _run(tmp_path / "phase2", "phase2")
    (tmp_path / "phase2" / "checkpoints" / "0").mkdir(parents=True)
    origins = provenance.read_origins(_config(tmp_path, "phase2"))
    assert origins["phase2"].score == "none"
    assert provenance.describe(origins["phase2"])["epochs"] == "no history: converted weights"
    assert "converted weights without a history" in provenance.list_warnings(origins, 1.0)[0]


def test_what_nobody_knows_is_not_made_up(tmp_path):
    history = _epochs(None, None, None)
    _run(tmp_path / "phase2", "phase2", history=history, **{"data.resize": True})
    origin = provenance.read_origins(_config(tmp_path, "phase2"))["phase2"]
    assert (origin.mpp, origin.score) == (None, "none")
    assert provenance.describe(origin)["resolution"].startswith("unknown")
    assert provenance.list_warnings({"phase2": origin}, 0.25) == []


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '"\xff'])
def test_a_damaged_history_is_one_line(tmp_path, text):
    _run(tmp_path / "phase2", "phase2")
    (tmp_path / "phase2" / "history.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"history\.json: not .*; restore it, or remove it"):
        provenance.read_origins(_config(tmp_path, "phase2"))


def test_precision_is_that_of_the_run_or_the_one_asked_for(runs_dir):
    config = base_slides.segment("a.svs", "", str(runs_dir / "phase2"))
    assert provenance.read_origins(config)["phase2"].precision == "float32"
    config.precision = "bfloat16"
    origin = provenance.read_origins(config)["phase2"]
    assert (origin.trained_in, origin.precision) == ("float32", "bfloat16")
    trained = load_trained(str(runs_dir / "phase2"), "phase2", "", "bfloat16")
    assert trained.network.dtype == "bfloat16"
    params = trained.variables["params"]
    kernel = next(iter(params["aspp"].values()))
    while isinstance(kernel, dict):
        kernel = next(iter(kernel.values()))
    assert kernel.dtype == np.float32
