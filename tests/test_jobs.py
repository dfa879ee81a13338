"""Every job end to end, on tiny data and with tiny networks."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import base_tools, demo, own_evaluate, own_masks, own_phase1, own_phase2
from data import folders, patch_files, synthetic
from data.dataset import load_dataset, save_dataset
from tests.conftest import SIZE, tiny_phase1, tiny_phase2
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.errors import InputError


def test_a_run_keeps_its_settings(runs_dir):
    first = config_lib.load(runs_dir / "phase1", "phase1")
    assert first.model.batch_norm == "trained"  # "auto", settled for random weights
    second = config_lib.load(runs_dir / "phase2", "phase2")
    assert (second.data.root, second.data.patch_size) == (first.data.root, SIZE)
    for name in ("phase1", "phase2"):
        history = json.loads((runs_dir / name / "history.json").read_text())
        assert len(history) == 1 and np.isfinite(history[0]["loss"])
        assert (runs_dir / name / "curves.png").stat().st_size > 1000


@pytest.mark.long
def test_a_data_set_of_ones_own_needs_its_folder_only(tmp_path, monkeypatch):
    """Other classes and another size of patches than any shipped data set, `variant=tuned`."""
    monkeypatch.chdir(tmp_path)
    counts = {"train": 24, "val": 4, "test": 4}
    synthetic.write_dataset(tmp_path / "mine", counts, 40, seed=0)
    first = own_phase1.get_config("variant=tuned")
    first.data.root = "mine"
    second = own_phase2.get_config("variant=tuned")
    for config in (first, second):
        config.epochs = 1  # the only other change
    steps = {
        "own_phase1": first,
        "own_masks": own_masks.get_config("variant=tuned"),
        "own_phase2": second,
        "own_evaluate": own_evaluate.get_config("variant=tuned"),
    }
    for name, config in steps.items():
        jobs.run(config, tmp_path / "runs" / name)
    assert config_lib.load(tmp_path / "runs" / "own_phase1", "phase1").data.patch_size == 40
    scores = json.loads((tmp_path / "runs" / "own_evaluate" / "scores.json").read_text())
    assert scores["classes"] == list(synthetic.DATASET.classes)


def test_a_size_to_resize_to_must_be_given(tissue_dir, tmp_path):
    config = own_phase1.get_config()
    config.data.root, config.data.resize = str(tissue_dir), True
    with pytest.raises(InputError, match=r"config\.data\.patch_size is 0: set"):
        jobs.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_true_masks_give_the_supervised_baseline(tmp_path):
    """A folder of masks under the training stems in the place of a run."""
    root = tmp_path / "data"
    dataset = synthetic.write_dataset(root, {"train": 8, "val": 2}, SIZE, seed=0)
    truth = tmp_path / "truth"
    truth.mkdir()
    for patch in folders.list_labeled_patches(root, "train", dataset):
        mask = np.full((SIZE, SIZE), np.flatnonzero(patch.label)[0], np.uint8)
        patch_files.write_mask(truth / f"{patch.stem}.png", mask, dataset)
    config = tiny_phase2(str(truth), layers=("truth",))
    config.data.root, config.data.patch_size, config.epochs = str(root), SIZE, 1
    jobs.run(config, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history[0]["loss"] == pytest.approx(history[0]["loss_truth"])


def test_prepare(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for region in range(6):
        image, mask = synthetic.draw_patch(rng, 96)
        patch_files.write_image(tmp_path / "images" / f"r{region}.png", image)
        Image.fromarray(mask + 10).save(tmp_path / "masks" / f"r{region}.png")
    description = tmp_path / "tissue.json"
    save_dataset(synthetic.DATASET, description)
    config = base_tools.prepare(
        str(tmp_path / "images"), str(tmp_path / "masks"), str(tmp_path / "out"), str(description)
    )
    config.codes = {name: (10 + i,) for i, name in enumerate(synthetic.DATASET.classes)}
    config.excluded, config.patch, config.stride, config.resize = (14,), 32, 32, 32
    config.shares, config.workers = (0.5, 0.25, 0.25), 1
    config_lib.validate(config)
    jobs.run(config, tmp_path)
    dataset = load_dataset("", tmp_path / "out")
    count = len(folders.list_labeled_patches(tmp_path / "out", "train", dataset))
    for split in ("val", "test"):
        count += len(folders.list_annotated_patches(tmp_path / "out", split, dataset))
    assert count == 6 * 9


@pytest.mark.long
def test_demo(tmp_path, capsys):
    config = demo.get_config()
    config.update({"size": SIZE, "train": 16, "val": 4, "test": 4})
    config.jobs.phase1.epochs = config.jobs.phase2.epochs = 1
    config.jobs.phase2.model.blocks = (1, 1, 1, 1)
    config_lib.validate(config)
    jobs.run(config, tmp_path / "demo")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"demo: mIoU {summary['phase2']:.3f} (phase 1 {summary['phase1']:.3f}, majority class "
        f"{summary['majority']:.3f}) in {summary['seconds']:.0f} s"
    )


def test_errors_in_a_demo_name_fields_of_the_command_line(tmp_path):
    config = demo.get_config()
    config.update({"size": SIZE, "train": 2, "val": 1, "test": 1})
    config.jobs.phase1.model.batch_norm = "frozen"
    words = (
        r"^config\.jobs\.phase1\.model\.batch_norm is .* config\.jobs\.phase1\.init is empty"
        r".* --config\.jobs\.phase1\.init or set --config\.jobs\.phase1\.model\.batch_norm=trained$"
    )
    with pytest.raises(InputError, match=words):
        jobs.run(config, tmp_path / "demo")


def test_hidden_files_make_no_folder_of_masks(tissue_dir, tmp_path):
    """What macOS leaves beside a folder that was copied."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "._a.png").write_bytes(b"macOS")
    config = tiny_phase2(str(tmp_path / "masks"), layers=("truth",))
    config.data.root, config.data.patch_size = str(tissue_dir), SIZE
    with pytest.raises(InputError, match=r"config\.masks: .*masks"):
        jobs.run(config, tmp_path / "run")
    config.masks = str(tmp_path / "none")
    with pytest.raises(InputError, match=r"config\.masks: .*none"):
        jobs.run(config, tmp_path / "run")


def test_frozen_statistics_need_weights(tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.model.batch_norm = "frozen"
    with pytest.raises(InputError, match=r"config\.init is empty"):
        jobs.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
