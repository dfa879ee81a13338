"""Every job end to end, on tiny data and with tiny networks."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from configs import base, demo
from data import folders, synthetic
from data.dataset import load_dataset, save_dataset
from tests.conftest import COUNTS, SIZE, tiny_phase1, tiny_phase2
from wsss_jax import config as config_lib
from wsss_jax import jobs, masks
from wsss_jax.errors import InputError


@pytest.fixture(scope="module")
def runs_dir(tissue_dir, tmp_path_factory):
    """The four jobs in a row."""
    root = tmp_path_factory.mktemp("runs")
    first = tiny_phase1(tissue_dir)
    first.epochs, first.model.batch_norm = 1, "auto"
    config_lib.validate(first)
    jobs.train_phase1(first, root / "phase1")

    opening = base.masks(str(root / "phase1"))
    opening.data.workers, opening.batch_size, opening.sheet_patches = 0, 8, 2
    config_lib.validate(opening)
    jobs.make_masks(opening, root / "masks")

    second = tiny_phase2(str(root / "masks"))
    second.epochs = 1
    config_lib.validate(second)
    jobs.train_phase2(second, root / "phase2")

    scoring = base.evaluate(str(root / "phase1"), str(root / "phase2"))
    scoring.data.workers, scoring.batch_size, scoring.sheet_patches = 0, 4, 2
    config_lib.validate(scoring)
    jobs.evaluate(scoring, root / "evaluate")
    return root


def test_a_run_keeps_its_settings(runs_dir):
    first = config_lib.load(runs_dir / "phase1", "phase1")
    assert first.model.batch_norm == "trained"  # "auto", settled for random weights
    second = config_lib.load(runs_dir / "phase2", "phase2")
    assert (second.data.root, second.data.patch_size) == (first.data.root, SIZE)
    for name in ("phase1", "phase2"):
        history = json.loads((runs_dir / name / "history.json").read_text())
        assert len(history) == 1 and np.isfinite(history[0]["loss"])
        assert (runs_dir / name / "curves.png").stat().st_size > 1000


def test_pseudo_masks_keep_to_labels_and_white(runs_dir, tissue_dir):
    dataset = load_dataset("", tissue_dir)
    patches = folders.training_patches(tissue_dir, dataset)
    assert len(patches) == COUNTS["train"]
    for layer in ("b4_3", "b5_2", "bn7"):
        folder = runs_dir / "masks" / "train_PM" / f"PM_{layer}"
        assert sorted(p.stem for p in folder.iterdir()) == [p.stem for p in patches]
        for patch in patches:
            mask = folders.read_mask(folder / f"{patch.stem}.png", dataset, SIZE)
            white = masks.white_background(folders.read_image(patch.image, SIZE))
            np.testing.assert_array_equal(mask == dataset.excluded, white)
            assert {k for k in np.unique(mask) if k < 4} <= set(np.flatnonzero(patch.label))
    palette = np.reshape(Image.open(folder / f"{patches[0].stem}.png").getpalette()[:15], (5, 3))
    np.testing.assert_array_equal(palette, dataset.palette)
    assert Image.open(runs_dir / "masks" / "contact_sheet.png").width > 4 * SIZE
    scores = json.loads((runs_dir / "masks" / "scores.json").read_text())
    assert [row["name"] for row in scores["rows"]] == ["b4_3", "b5_2", "bn7"]


def test_evaluation_writes_table_and_pictures(runs_dir):
    folder = runs_dir / "evaluate"
    scores = json.loads((folder / "scores.json").read_text())
    names = ["majority class", "phase 1", "phase 2", "phase 2 + gate"]
    assert [row["name"] for row in scores["rows"]] == names
    assert scores["meta"]["patches"] == COUNTS["test"]
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[2]["mIoU"]) == scores["rows"][2]["miou"]
    for name in ("confusion", "worst", "best", "examples"):
        assert Image.open(folder / f"{name}.png").width > 4 * SIZE


def test_true_masks_give_the_supervised_baseline(tmp_path):
    """A folder of masks under the training stems in the place of a run."""
    root = tmp_path / "data"
    dataset = synthetic.write_dataset(root, {"train": 8, "val": 2}, SIZE, seed=0)
    truth = tmp_path / "truth"
    truth.mkdir()
    for patch in folders.training_patches(root, dataset):
        mask = np.full((SIZE, SIZE), np.flatnonzero(patch.label)[0], np.uint8)
        folders.write_mask(truth / f"{patch.stem}.png", mask, dataset)
    config = tiny_phase2(str(truth), layers=("truth",))
    config.data.root, config.data.patch_size, config.epochs = str(root), SIZE, 1
    jobs.train_phase2(config, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history[0]["loss"] == pytest.approx(history[0]["loss_truth"])


def test_prepare(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for region in range(6):
        image, mask = synthetic.draw_patch(rng, 96)
        folders.write_image(tmp_path / "images" / f"r{region}.png", image)
        Image.fromarray(mask + 10).save(tmp_path / "masks" / f"r{region}.png")
    description = tmp_path / "tissue.json"
    save_dataset(synthetic.DATASET, description)
    config = base.prepare(
        str(tmp_path / "images"), str(tmp_path / "masks"), str(tmp_path / "out"), str(description)
    )
    config.codes = {name: (10 + i,) for i, name in enumerate(synthetic.DATASET.classes)}
    config.excluded, config.patch, config.stride, config.resize = (14,), 32, 32, 32
    config.shares, config.workers = (0.5, 0.25, 0.25), 1
    config_lib.validate(config)
    jobs.prepare(config, tmp_path)
    dataset = load_dataset("", tmp_path / "out")
    count = len(folders.training_patches(tmp_path / "out", dataset))
    for split in ("val", "test"):
        count += len(folders.annotated_patches(tmp_path / "out", split, dataset))
    assert count == 6 * 9


def test_demo(tmp_path, capsys):
    config = demo.get_config()
    config.update({"size": SIZE, "train": 16, "val": 4, "test": 4})
    config.jobs.phase1.epochs = config.jobs.phase2.epochs = 1
    config.jobs.phase2.model.blocks = (1, 1, 1, 1)
    config_lib.validate(config)
    jobs.demo(config, tmp_path / "demo")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"demo: mIoU {summary['phase2']:.3f} (phase 1 {summary['phase1']:.3f}, majority class "
        f"{summary['majority']:.3f}) in {summary['seconds']:.0f} s"
    )


def test_frozen_statistics_need_weights(tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.model.batch_norm = "frozen"
    with pytest.raises(InputError, match=r"config\.init is empty"):
        jobs.train_phase1(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_setting_is_no_continuation(runs_dir, tissue_dir):
    config = tiny_phase1(tissue_dir)
    config.epochs, config.seed = 1, 7
    with pytest.raises(InputError, match=r"other settings \(seed: 0 / 7\)"):
        jobs.train_phase1(config, runs_dir / "phase1")


def test_runs_that_are_not_there(runs_dir, tmp_path):
    config = base.masks(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"config\.phase1: .*nothing holds no run"):
        jobs.make_masks(config, tmp_path / "out")
    config.phase1 = str(runs_dir / "phase2")
    with pytest.raises(InputError, match="is a run of the job 'phase2', not 'phase1'"):
        jobs.make_masks(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
