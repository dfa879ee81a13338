"""The dense CRF in the jobs `masks` and `evaluate`: off by default, and what it does there."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import base
from data import patch_files
from data.dataset import load_dataset
from tests.conftest import COUNTS, SIZE
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import jobs, masks, runs, scoring, sources
from wsss_jax.crf import DenseCrf, refine_probabilities
from wsss_jax.errors import InputError
from wsss_jax.jobs import masks as masks_job
from wsss_jax.methods import phase1
from wsss_jax.methods.gate import Gate
from wsss_jax.training.trained import Trained, load_trained

LAYERS = ("b5_2", "bn7")


def _make_masks(runs_dir, iterations):
    config = base.masks(str(runs_dir / "phase1"))
    config.data.workers, config.batch_size, config.sheet_patches = 0, 8, 0
    config.layers, config.crf.iterations = LAYERS, iterations
    config_lib.validate(config)
    return config


def _make_evaluation(runs_dir, iterations, phase2="phase2"):
    config = base.evaluate(str(runs_dir / "phase1"), str(runs_dir / phase2) if phase2 else "")
    config.data.workers, config.batch_size, config.sheet_patches = 0, 4, 0
    config.crf.iterations = iterations
    config_lib.validate(config)
    return config


def _read_patches(config, split):
    """The names, images (B, H, W, 3) and labels of a split."""
    source = sources.open_source(config.data, load_dataset("", config.data.root), split)
    patches = [source[index] for index in range(len(source))]
    images, labels = (np.stack([patch[name] for patch in patches]) for name in ("image", "label"))
    return source.names, images, labels


def test_defaults_are_those_of_the_type_and_off():
    off = base.crf()
    assert DenseCrf.of(off) == DenseCrf()._replace(iterations=0)
    before = {name: rule.before for name, rule in rules.CRF.items()}
    assert {f"crf.{name}": value for name, value in off.items()} == before


def test_probabilities_of_maps_follow_the_joint_min_max():
    maps = np.random.default_rng(0).normal(size=(3, 4, 6, 5)).astype(np.float32)
    present = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    shares = np.asarray(masks.probabilities(maps, present, (6, 5)))
    scores = maps[0][[0, 2, 3]]
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    expected = np.moveaxis(scores / scores.sum(axis=0), 0, -1)
    np.testing.assert_allclose(shares[0][:, :, [0, 2, 3]], expected, atol=1e-5)
    assert not shares[0, :, :, 1].any() and not shares[2].any()
    np.testing.assert_allclose(shares[1], np.broadcast_to([0, 1, 0, 0], (6, 5, 4)), atol=1e-6)
    labels = masks.label_maps(maps[:2], present[:2], (6, 5), absent="excluded")
    np.testing.assert_array_equal(shares[:2].argmax(axis=-1), labels)
    flat = masks.probabilities(np.ones((1, 2, 3, 3)), np.ones((1, 2)), (3, 3))
    np.testing.assert_allclose(flat, 0.5)


def test_masks_are_those_of_refined_maps(runs_dir, tissue_dir, tmp_path):
    config = _make_masks(runs_dir, 2)
    jobs.run(config, tmp_path)
    dataset = load_dataset("", tissue_dir)
    classifier = load_trained(config.phase1, "phase1", "activations")
    names, images, labels = _read_patches(classifier.config, "train")
    maps = jax.jit(partial(classifier.open_layers, layers=LAYERS))(classifier.variables, images)
    refine = jax.jit(partial(refine_probabilities, crf=DenseCrf.of(config.crf)))
    for layer in LAYERS:
        shares = masks.probabilities(maps[layer], labels, (SIZE, SIZE))
        refined = np.asarray(refine(shares, images))
        different = changed = 0.0
        for name, image, expected in zip(names, images, refined.argmax(axis=-1)):
            mask, plain = (
                patch_files.read_mask(runs.layer_dir(workdir, layer) / f"{name}.png", dataset, SIZE)
                for workdir in (tmp_path, runs_dir / "masks")
            )
            white = masks.find_white_background(image)
            np.testing.assert_array_equal(mask == dataset.excluded, white)
            different += np.mean((mask != expected) & ~white) / len(names)
            changed += np.mean(mask != plain) / len(names)
        assert different < 0.01 < changed  # another program rounds otherwise


def test_a_patch_without_label_stays_excluded(runs_dir):
    config = _make_masks(runs_dir, 2)  # the program of the test before
    classifier = load_trained(config.phase1, "phase1", "activations")
    image = np.full((config.batch_size, SIZE, SIZE, 3), 90, np.uint8)
    batch = {"image": image, "label": np.zeros((len(image), 4), np.uint8)}
    opened = masks_job.make_opener(config, classifier)(batch)
    assert all((opened[layer] == classifier.dataset.excluded).all() for layer in LAYERS)


def test_absent_classes_that_win_are_refused(runs_dir):
    config = _make_masks(runs_dir, 0)
    config.absent = "zero"
    config_lib.validate(config)
    config.crf.iterations = 1
    with pytest.raises(InputError, match=r"config\.absent is 'zero', but the CRF .*: set --config"):
        config_lib.validate(config)


@pytest.mark.parametrize("iterations", [0, 2])
def test_evaluation_scores_refined_probabilities(runs_dir, tmp_path, iterations):
    config = _make_evaluation(runs_dir, iterations)
    jobs.run(config, tmp_path)
    whole = runs_dir / "evaluate"
    scores, plain = (
        json.loads((folder / "scores.json").read_text()) for folder in (tmp_path, whole)
    )
    if not iterations:
        assert scores == plain
        for path in sorted((whole / "predictions").iterdir()):
            assert path.read_bytes() == (tmp_path / "predictions" / path.name).read_bytes()
        return
    assert scores["meta"]["crf"]["iterations"] == 2 and "crf" not in plain["meta"]
    rows = [row["name"] for row in plain["rows"]]
    assert [row["name"] for row in scores["rows"]] == rows
    one, two = (load_trained(str(runs_dir / name), name, "") for name in ("phase1", "phase2"))
    names, images, _ = _read_patches(two.config, "test")
    assert len(names) == COUNTS["test"]
    first, second = (jax.jit(each.predict)(each.variables, images) for each in (one, two))
    gated = Gate.of(config.gate).probabilities(second.logits, first.presence)
    refine = jax.jit(partial(refine_probabilities, crf=DenseCrf.of(config.crf)))
    expected = np.asarray(refine(gated, images)).argmax(axis=-1)
    dataset = load_dataset("", two.config.data.root)
    read = [
        np.stack(
            [
                patch_files.read_mask(folder / "predictions" / f"{name}.png", dataset, SIZE)
                for name in names
            ]
        )
        for folder in (tmp_path, whole)
    ]
    assert np.mean(read[0] != expected) < 0.01 < np.mean(read[0] != read[1])
    by_name = [{row["name"]: row for row in each["rows"]} for each in (scores, plain)]
    assert all(by_name[0][name] != by_name[1][name] for name in rows[1:])


def test_classes_that_phase_1_does_not_predict_stay_out(runs_dir):
    trained = load_trained(str(runs_dir / "phase1"), "phase1", "activations")
    _, images, _ = _read_patches(trained.config, "test")
    prediction = jax.jit(trained.predict)(trained.variables, images)
    threshold = float(np.median(np.asarray(prediction.presence)))
    config = config_lib.thaw(trained.config)
    config.cam.threshold = threshold
    trained = trained._replace(config=config)
    shares = np.asarray(trained.compute_probabilities(prediction, (SIZE, SIZE)))
    predicted = np.asarray(prediction.presence) > threshold
    assert predicted.any() and not predicted.all()
    np.testing.assert_array_equal(shares.any(axis=(1, 2)), predicted)
    labels = phase1.label_activations(config, prediction, images)
    some = predicted.any(axis=1)
    np.testing.assert_array_equal(shares.argmax(axis=-1)[some], np.asarray(labels)[some])


def test_a_method_without_probabilities_is_refused(runs_dir, tmp_path, monkeypatch):
    method = SimpleNamespace(**{k: v for k, v in vars(phase1).items() if k != "share_activations"})
    monkeypatch.setattr(Trained, "method", property(lambda self: method))
    with pytest.raises(InputError, match=r"^phase 1 gives label maps .* set --config\.crf\.iter"):
        scoring.load_subject(_make_evaluation(runs_dir, 1, phase2=""))
    scoring.load_subject(_make_evaluation(runs_dir, 0, phase2=""))
    assert not list(tmp_path.iterdir())
