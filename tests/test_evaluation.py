import csv
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base
from data import patch_files
from data.dataset import derive_label, load_dataset
from tests.conftest import COUNTS, SIZE
from wsss_jax import config as config_lib
from wsss_jax import jobs, metrics
from wsss_jax.errors import InputError
from wsss_jax.jobs import evaluate
from wsss_jax.report.colors import OKABE_ITO
from wsss_jax.training.trained import load_trained


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


def test_the_label_maps_of_the_last_method_are_written(runs_dir, tissue_dir):
    dataset = load_dataset("", tissue_dir)
    confusion = np.zeros((4, 5), int)
    truths = sorted((tissue_dir / "test" / "mask").glob("*.png"))
    for path in truths:
        truth = patch_files.read_mask(path, dataset, SIZE)
        found = runs_dir / "evaluate" / "predictions" / path.name
        prediction = patch_files.read_mask(found, dataset, SIZE)
        confusion += np.asarray(metrics.confusion_matrices(truth[None], prediction[None], 4))[0]
    assert len(truths) == COUNTS["test"]
    scores = json.loads((runs_dir / "evaluate" / "scores.json").read_text())
    assert metrics.segmentation_scores(confusion)["miou"] == scores["rows"][-1]["miou"]


def test_the_labels_of_patches_are_scored(runs_dir, tissue_dir, tmp_path):
    dataset = load_dataset("", tissue_dir)
    classifier = load_trained(str(runs_dir / "phase1"), "phase1", "presence")
    truths = sorted((tissue_dir / "test" / "mask").glob("*.png"))
    folder = tissue_dir / "test" / "img"
    images = [patch_files.read_image(folder / path.name, SIZE) for path in truths]
    labels = [derive_label(patch_files.read_mask(path, dataset, SIZE), dataset) for path in truths]
    prediction = jax.jit(classifier.predict)(classifier.variables, np.stack(images))
    expected = metrics.multilabel_scores(np.asarray(prediction.presence), np.stack(labels))
    rows = json.loads((runs_dir / "evaluate" / "scores.json").read_text())["rows"]
    found = {row["name"]: row["patches"] for row in rows}
    for name in ("patch_accuracy", "exact_match"):
        assert found["phase 1"][name] == expected[name]
    assert found["phase 2"] is found["phase 2 + gate"] is found["majority class"] is None
    assert evaluate.load_patch_accuracy(runs_dir / "evaluate") is None  # of the last row
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"rows": [{"patches": {"patch_accuracy": 0.75}}]}))
    assert evaluate.load_patch_accuracy(tmp_path) == 0.75
    for damaged in ("", "{}", '{"rows": [{}]}', '{"rows": []}'):
        scores.write_text(damaged)
        with pytest.raises(InputError, match=r"scores.json: no scores of this version"):
            evaluate.load_patch_accuracy(tmp_path)


@pytest.mark.parametrize(
    ("phase1", "phase2", "rows"),
    [(True, False, ["phase 1"]), (False, True, ["phase 2"])],
)
def test_one_phase_alone(runs_dir, tmp_path, phase1, phase2, rows):
    config = base.evaluate(
        str(runs_dir / "phase1") if phase1 else "", str(runs_dir / "phase2") if phase2 else ""
    )
    config.data.workers, config.batch_size, config.sheet_patches = 0, 4, 0
    jobs.run(config, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [row["name"] for row in scores["rows"]] == ["majority class", *rows]
    assert len(list((tmp_path / "predictions").iterdir())) == COUNTS["test"]
    whole = json.loads((runs_dir / "evaluate" / "scores.json").read_text())
    same = next(row for row in whole["rows"] if row["name"] == rows[0])
    np.testing.assert_equal(scores["rows"][1], same)


def test_pictures_have_the_colors_asked_for_and_label_maps_their_own(
    runs_dir, tissue_dir, tmp_path
):
    config = base.evaluate("", str(runs_dir / "phase2"))
    config.data.workers, config.batch_size, config.sheet_patches = 0, 4, 2
    config.palette, config.precision = "colorblind", "float32"
    jobs.run(config, tmp_path)
    drawn = {
        folder: set(
            map(tuple, np.asarray(Image.open(folder / "best.png").convert("RGB")).reshape(-1, 3))
        )
        for folder in (tmp_path, runs_dir / "evaluate")
    }
    own = set(load_dataset("", tissue_dir).palette[:-1])
    assert set(OKABE_ITO[:4]) <= drawn[tmp_path] and not own & drawn[tmp_path]
    assert own <= drawn[runs_dir / "evaluate"]
    mask = next((tmp_path / "predictions").iterdir())
    assert tuple(Image.open(mask).getpalette()[:3]) in own


def test_an_interrupted_run_leaves_no_scores_of_the_one_before(runs_dir, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(runs_dir / "evaluate", workdir)
    (workdir / "notes.png").write_text("theirs")
    before = (workdir / "config.json").read_bytes()
    config = base.evaluate(str(runs_dir / "phase1"), "")
    config.data.workers, config.batch_size, config.split = 0, 4, "val"

    def interrupted(*_):
        assert (workdir / "config.json").read_bytes() == before
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.runs, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(config, workdir)
    assert sorted(path.name for path in workdir.iterdir()) == [
        "config.json",
        "dataset.json",
        "notes.png",
        "patches.json",
        "predictions",
    ]
    assert not list((workdir / "predictions").iterdir())


def test_another_data_set_is_refused(runs_dir, tmp_path):
    config = base.evaluate(str(runs_dir / "phase1"), "")
    config.data.dataset = "bcss_wsss"
    with pytest.raises(InputError, match="the earlier run learned ''"):
        jobs.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_its_own_predictions_are_removed(runs_dir, tmp_path):
    config = base.evaluate(str(runs_dir / "phase1"), "")
    config.data.workers, config.batch_size, config.sheet_patches = 0, 4, 0
    config.split = "val"
    elsewhere, workdir = tmp_path / "elsewhere", tmp_path / "run"
    for folder in (elsewhere, workdir):
        folder.mkdir()
    (workdir / "predictions").symlink_to(elsewhere)
    config_lib.save(config, workdir)
    jobs.run(config, workdir)
    assert len(list(elsewhere.iterdir())) == COUNTS["val"]
    note = elsewhere / "what I saw.png"
    note.write_text("theirs")
    config.split = "test"
    jobs.run(config, workdir)
    assert {path.name for path in elsewhere.iterdir() if path != note} == {
        f"test_{number:05d}.png" for number in range(COUNTS["test"])
    }
    assert note.read_text() == "theirs"

    (workdir / "patches.json").unlink()  # as in a run of version 0.1
    with pytest.raises(InputError, match=r"what I saw\.png is of no patch of this split: remove"):
        jobs.run(config, workdir)
    assert note.read_text() == "theirs"
