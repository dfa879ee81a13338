"""A method is one file and one line: then it trains, is evaluated, exported, segments slides."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base, base_slides, base_tools
from data import synthetic
from tests.conftest import tiny_phase1
from wsss_jax import config as config_lib
from wsss_jax import jobs, methods
from wsss_jax.errors import InputError


@pytest.fixture
def toy_run(tissue_dir, tmp_path, monkeypatch):
    """The run of a method that is registered for this test."""
    monkeypatch.setitem(methods.METHODS, "toy", "tests.toy_method")
    config = tiny_phase1(tissue_dir)
    for field in ("pda", "cam"):
        del config[field]
    for field in ("batch_norm", "frozen_blocks", "dropout_rates"):
        del config.model[field]
    config.job, config.kernel, config.epochs, config.select = "toy", 3, 2, "best"
    config_lib.validate(config)
    jobs.run(config, tmp_path / "toy")
    return tmp_path / "toy"


def test_a_new_method_trains(toy_run):
    history = json.loads((toy_run / "history.json").read_text())
    assert [figures["epoch"] for figures in history] == [0, 1]
    assert history[1]["loss"] < history[0]["loss"]
    assert np.isfinite(history[1]["miou"]) and "val_exact_match" not in history[1]


def test_a_new_method_is_evaluated_beside_the_others(toy_run, runs_dir, tmp_path, capsys):
    config = base.evaluate(str(runs_dir / "phase1"), str(runs_dir / "phase2"))
    config.runs, config.data.workers = (str(toy_run),), 0
    config.batch_size, config.sheet_patches, config.tta = 5, 2, "d4"
    config_lib.validate(config)
    jobs.run(config, tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["meta"]["tta"] == "d4"
    names = [row["name"] for row in scores["rows"]]
    assert names == ["majority class", "toy", "phase 1", "phase 2", "phase 2 + gate"]
    assert "toy  " in capsys.readouterr().out


def test_a_new_method_segments_a_slide(toy_run, runs_dir, tmp_path):
    image, _ = synthetic.draw_patch(np.random.default_rng(0), 160)
    slide = tmp_path / "slide.png"
    Image.fromarray(image).save(slide)
    config = base_slides.segment(str(slide), str(runs_dir / "phase1"), str(toy_run))
    config.mpp = config.slide_mpp = 0.5
    config.tissue.source, config.batch_size = "off", 4
    config_lib.validate(config)
    jobs.run(config, tmp_path / "maps")
    summary = json.loads((tmp_path / "maps" / "slide" / "slide.json").read_text())
    assert summary["size"] == [160, 160]
    assert sum(row["pixels"] for row in summary["areas"][:5]) == 160 * 160


def test_a_method_without_logits_segments_nothing(toy_run, runs_dir, tmp_path):
    config = base_slides.segment("slide.png", "", str(runs_dir / "phase1"))
    (tmp_path / "slide.png").touch()
    config.slides = str(tmp_path / "slide.png")
    with pytest.raises(InputError, match="a run of the job 'phase1', not 'phase2' or 'toy'"):
        jobs.run(config, tmp_path / "maps")


def test_a_new_method_has_its_fields_checked(toy_run):
    config = config_lib.thaw(config_lib.load(toy_run, "workdir"))
    config.kernel = 11
    with pytest.raises(InputError, match=r"config\.kernel is 11: it must be an integer"):
        config_lib.validate(config)


def test_a_new_method_is_exported(toy_run, tmp_path):
    config = base_tools.export(str(toy_run))
    config.formats, config.platforms = ("safetensors", "stablehlo"), ("cpu",)
    jobs.run(config, tmp_path / "exported")
    assert (tmp_path / "exported" / "toy.safetensors").stat().st_size
    program = jax.export.deserialize(
        bytearray((tmp_path / "exported" / "toy.stablehlo").read_bytes())
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    result = program.call(images)
    assert result["probability"].shape == (2, 32, 32, 4)
    np.testing.assert_array_equal(result["segmentation"], result["probability"].argmax(axis=-1))
