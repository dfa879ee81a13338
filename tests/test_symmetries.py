"""Test-time averaging: values by hand, invariance, and the jobs that use it."""

import itertools
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, base_slides
from tests.slides.slide_runs import DETERMINISTIC, make_config, read_json, write_slide
from wsss_jax import config as config_lib
from wsss_jax import jobs, masks, symmetries
from wsss_jax.errors import InputError
from wsss_jax.methods.averaging import average_predictions
from wsss_jax.methods.gate import Gate
from wsss_jax.methods.prediction import Prediction
from wsss_jax.training.trained import load_trained


def _turn(turns, mirrored, x):
    return np.rot90(x[:, :, ::-1] if mirrored else x, turns, (1, 2))


TURNS = list(itertools.product(range(4), (False, True)))
D4 = [partial(_turn, *each) for each in TURNS]
BACK = [partial(_turn, turns if mirrored else -turns, mirrored) for turns, mirrored in TURNS]


def _brightness(image):
    """A predictor to which it is all the same how an image is turned: two classes by gray value."""
    gray = image.astype(jnp.float32).mean(axis=-1) / 64
    return Prediction((gray > 2).astype(jnp.uint8), logits=jnp.stack([2 - gray, gray - 2], axis=-1))


def _columns(image):
    """One that does: the classes of a pixel follow from its column alone."""
    column = jnp.broadcast_to(jnp.arange(image.shape[2]), image.shape[:3])
    logits = jnp.log(jnp.stack([column + 1.0, jnp.ones_like(column, jnp.float32)], axis=-1))
    return Prediction(logits.argmax(axis=-1).astype(jnp.uint8), logits=logits)


def _average(predict, image, tta):
    return jax.jit(lambda image: average_predictions(predict, None, image, tta))(image)


def _images(height, width, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_what_is_the_same_in_all_views_stays(tta):
    image = _images(6, 6)
    once, mean = _brightness(image), _average(_brightness, image, tta)
    np.testing.assert_allclose(jax.nn.softmax(mean.logits), jax.nn.softmax(once.logits), rtol=1e-5)
    np.testing.assert_array_equal(mean.label_maps, once.label_maps)
    assert mean.label_maps.dtype == jnp.uint8 and mean.presence is None


def test_means_by_hand():
    """Columns 0, 1, 2 have the probabilities 1/2, 2/3, 3/4 of class 0."""
    image = _images(3, 3, count=1)
    by_column = np.array([1 / 2, 2 / 3, 3 / 4])
    flipped = (by_column + by_column[::-1]) / 2
    for tta, expected in (
        ("none", np.broadcast_to(by_column, (3, 3))),
        ("flips", np.broadcast_to(flipped, (3, 3))),
        ("d4", (flipped[:, None] + flipped) / 2),
    ):
        mean = jax.nn.softmax(_average(_columns, image, tta).logits)
        np.testing.assert_allclose(mean[0, ..., 0], expected, rtol=1e-6)
        np.testing.assert_allclose(mean.sum(axis=-1), 1, rtol=1e-6)


def _network(image):
    """One convolution, with presence and activations, too; equal to no turned copy of itself."""
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    x = jax.lax.conv_general_dilated(
        image.astype(jnp.float32) / 255,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    presence = jax.nn.sigmoid(x[:, 1:3, :2].mean(axis=(1, 2)))
    label_maps = x.argmax(axis=-1).astype(jnp.uint8)
    return Prediction(label_maps, presence, x, jnp.moveaxis(x, -1, 1))


def _label(prediction):
    return prediction.activations.argmax(axis=1).astype(jnp.uint8)


def test_a_mean_over_all_symmetries_turns_with_the_image():
    image = _images(8, 8)
    average = jax.jit(lambda image: average_predictions(_network, _label, image, "d4"))
    mean = average(image)
    for move in D4:
        turned = average(np.ascontiguousarray(move(image)))
        np.testing.assert_allclose(turned.logits, move(np.asarray(mean.logits)), atol=1e-5)
        np.testing.assert_allclose(turned.presence, mean.presence, atol=1e-6)
        rows_first = np.moveaxis(np.asarray(mean.activations), 1, -1)
        expected = np.moveaxis(move(rows_first), -1, 1)
        np.testing.assert_allclose(turned.activations, expected, atol=1e-5)
        np.testing.assert_array_equal(turned.label_maps, move(np.asarray(mean.label_maps)))
    assert np.abs(np.asarray(_network(image).logits) - mean.logits).max() > 0.1


def test_the_eight_views_are_the_eight_symmetries():
    image = _images(4, 4, count=1)
    seen = []

    def record(image):
        jax.debug.callback(lambda x: seen.append(np.asarray(x).tobytes()), image)
        return {"mean": image.astype(jnp.float32)}

    mean = symmetries.average(record, jnp.asarray(image), "d4", {"mean": 1})
    jax.effects_barrier()
    np.testing.assert_array_equal(mean["mean"], image)  # all are turned back
    assert len(seen) == symmetries.count("d4") == 8
    assert set(seen) == {np.ascontiguousarray(move(image)).tobytes() for move in D4}
    assert (symmetries.count("none"), symmetries.count("flips")) == (1, 4)


def test_images_that_are_not_square_are_mirrored_but_not_turned():
    image = _images(4, 6)
    assert _average(_columns, image, "flips").logits.shape == (2, 4, 6, 2)
    with pytest.raises(InputError, match=r"they have 6 x 4 pixels: set --config\.tta=flips"):
        _average(_columns, image, "d4")


def test_label_maps_alone_have_no_mean():
    def predict(image):
        return Prediction(jnp.zeros(image.shape[:3], jnp.uint8))

    with pytest.raises(InputError, match=r"label maps without .*: set --config\.tta=none"):
        _average(predict, _images(4, 4), "flips")


def test_a_class_without_probability_is_left_where_the_gate_closes_the_others():
    def predict(image):
        logits = jnp.zeros((*image.shape[:3], 2)).at[..., 0].set(1000.0)
        return Prediction(logits.argmax(axis=-1).astype(jnp.uint8), logits=logits)

    logits = _average(predict, _images(4, 4), "d4").logits
    assert np.isfinite(logits).all() and (np.asarray(logits).argmax(axis=-1) == 0).all()
    gate, presence = Gate("probabilities", 0.1), jnp.array([[0.0, 1.0]] * 2)
    np.testing.assert_array_equal(gate.segment(logits, presence), 1)
    assert (np.asarray(gate.probabilities(logits, presence))[..., 1] > 0).all()


def test_averaged_logits_cannot_be_multiplied():
    scoring = base.evaluate("one", "two", "reference")
    segmenting = base_slides.segment("a.svs", "one", "two", "reference")
    for config in (scoring, segmenting):
        config_lib.validate(config)
        config.tta = "d4"
        with pytest.raises(InputError, match=r"set --config\.gate\.mode=probabilities or --config"):
            config_lib.validate(config)
        config.phase1 = ""  # no gate
        config_lib.validate(config)


def _average_views(function, image):
    """The mean over all views of what a function gives in channels last, each turned back."""
    views = [np.asarray(function(np.ascontiguousarray(move(image)))) for move in D4]
    return np.mean([back(view) for back, view in zip(BACK, views)], axis=0)


@pytest.mark.long
def test_a_run_is_averaged_as_its_views_are(runs_dir):
    """Phase 1, against a loop over the views."""
    image = _images(32, 32)
    first = load_trained(str(runs_dir / "phase1"), "phase1", "")
    predict, average = (
        jax.jit(partial(first._replace(tta=tta).predict, first.variables)) for tta in ("none", "d4")
    )
    mean = average(image)
    presence = [predict(np.ascontiguousarray(move(image))).presence for move in D4]
    np.testing.assert_allclose(mean.presence, np.mean(presence, axis=0), atol=1e-5)
    maps = _average_views(lambda x: jnp.moveaxis(predict(x).activations, 1, -1), image)
    tolerance = 1e-4 * np.abs(maps).max()
    np.testing.assert_allclose(np.moveaxis(mean.activations, 1, -1), maps, atol=tolerance)
    again = masks.segmentation(mean.activations, mean.presence, (32, 32), 0.25)
    np.testing.assert_array_equal(mean.label_maps, again)

    def open_layer(trained, image):
        return jnp.moveaxis(trained.open_layers(trained.variables, image, ("bn7",))["bn7"], 1, -1)

    opened = jax.jit(partial(open_layer, first._replace(tta="d4")))(image)
    expected = _average_views(jax.jit(partial(open_layer, first)), image)
    np.testing.assert_allclose(opened, expected, atol=1e-4 * np.abs(expected).max())


def test_masks_are_of_mean_maps(runs_dir, tmp_path):
    config = config_lib.thaw(config_lib.load(runs_dir / "masks", "workdir"))
    config.tta, config.layers, config.sheet_patches = "d4", ("bn7",), 0
    jobs.run(config, tmp_path / "masks")
    once = runs_dir / "masks" / "train_PM" / "PM_bn7"
    now = tmp_path / "masks" / "train_PM" / "PM_bn7"
    assert sorted(path.name for path in now.iterdir()) == sorted(p.name for p in once.iterdir())
    assert any(path.read_bytes() != (once / path.name).read_bytes() for path in now.iterdir())
    with pytest.raises(InputError, match=r"other settings \(tta: 'd4' / 'none'\)"):
        jobs.run(config_lib.replace(config, tta="none"), tmp_path / "masks")


@pytest.mark.long
def test_slides_with_averaging(runs_dir, tmp_path, capsys):
    """Resumed to the same bytes; other averaging makes another map, none the map of before."""
    slide = write_slide(tmp_path / "s.svs")
    config = make_config(slide, runs_dir)
    config.stride, config.tta = 32, "d4"
    jobs.run(config, tmp_path / "whole")
    summary = read_json(tmp_path / "whole" / "s" / "slide.json")
    assert summary["settings"]["map"]["tta"] == "d4"
    report = (tmp_path / "whole" / "s" / "report.html").read_text()
    assert "mean of 8 of each tile: as it is, and mirrored and turned" in report

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    folder = tmp_path / "resumed" / "s"
    (folder / "slide.json").unlink()
    for part in sorted((folder / "parts").glob("part_*.bin"))[-1:]:
        part.unlink()
    jobs.run(config, tmp_path / "resumed")
    assert read_json(folder / "slide.json")["tiles_of_last_start"] > 0
    for name in DETERMINISTIC:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / "s" / name).read_bytes()

    capsys.readouterr()
    config.tta = "none"
    jobs.run(config, tmp_path / "resumed")
    assert "was finished with other tta: done again" in capsys.readouterr().out
    assert "tta" not in read_json(folder / "slide.json")["settings"]["map"]
    assert "Views" not in (folder / "report.html").read_text()


def test_the_doctor_counts_the_views(runs_dir, tmp_path, capsys):
    config = base_slides.doctor()
    config.slide, config.mpp, config.tissue.source = (
        str(write_slide(tmp_path / "s.svs")),
        1.0,
        "off",
    )
    config.phase2, config.tta = str(runs_dir / "phase2"), "flips"
    jobs.run(config, None)
    assert "the networks see each tile 4 times" in " ".join(capsys.readouterr().out.split())
