"""Fields that a method measures on its training patches, and those it calibrates afterwards."""

import json

import numpy as np
import pytest

from data.dataset import load_dataset
from tests import toy_method
from tests.conftest import tiny_phase1
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import jobs, methods, sources
from wsss_jax.errors import InputError
from wsss_jax.training import calibration, measurement
from wsss_jax.training.trained import load_trained


def _measure(config, counts, labels):
    """The mean of all values, and how often each class is there."""
    mean = float(counts @ np.arange(256) / counts.sum() / 255)
    return {"model.mean": (mean,) * 3, "shares": tuple(labels.mean(axis=0).tolist())}


def _predict(config, network, variables, image):
    prediction = toy_method_predict(config, network, variables, image)
    presence = prediction.logits.mean(axis=(1, 2))
    return prediction._replace(presence=presence)


def _calibrate(config, classes, presence, labels):
    return {"least": tuple(float(p) for p in presence.min(axis=0))} if len(presence) else {}


toy_method_predict = toy_method.predict


@pytest.fixture
def config(tissue_dir, monkeypatch):
    """A toy method that measures and is calibrated."""
    monkeypatch.setitem(methods.METHODS, "toy", "tests.toy_method")
    numbers = rules.sequence(rules.number(-rules.LARGEST, rules.LARGEST))
    fields = {"model.mean": numbers, "shares": numbers, "least": numbers}
    monkeypatch.setattr(toy_method, "FIELDS", toy_method.FIELDS | fields)
    monkeypatch.setattr(toy_method, "MEASURED", ("model.mean", "shares"), raising=False)
    monkeypatch.setattr(toy_method, "measure", _measure, raising=False)
    monkeypatch.setattr(toy_method, "predict", _predict)
    monkeypatch.setattr(toy_method, "CALIBRATED", ("least",), raising=False)
    monkeypatch.setattr(toy_method, "calibrate", _calibrate, raising=False)
    config = tiny_phase1(tissue_dir)
    for field in ("pda", "cam"):
        del config[field]
    for field in ("batch_norm", "frozen_blocks", "dropout_rates"):
        del config.model[field]
    config.job, config.kernel, config.epochs, config.select = "toy", 3, 1, "last"
    config.model.mean = config.shares = config.least = ()
    config_lib.validate(config)
    return config


def test_fields_are_measured_once(config, tissue_dir, tmp_path, monkeypatch):
    jobs.run(config, tmp_path)
    source = sources.open_source(config.data, load_dataset("", tissue_dir), "train")
    values = np.stack([source[i]["image"] for i in range(len(source))])
    labels = np.stack([source[i]["label"] for i in range(len(source))])
    saved = config_lib.load(tmp_path, "workdir")
    np.testing.assert_allclose(saved.model.mean, [values.mean() / 255] * 3, rtol=1e-12)
    np.testing.assert_array_equal(saved.shares, labels.mean(axis=0))

    def refuse(*arguments):
        raise AssertionError("the patches are read again")

    monkeypatch.setattr(measurement, "_read", refuse)
    config.epochs = 1
    before = (tmp_path / "config.json").read_bytes()
    jobs.run(config, tmp_path)  # goes on, with nothing left to do
    assert (tmp_path / "config.json").read_bytes() == before
    set_ones = config_lib.fill(config, {"model.mean": (0.5,) * 3, "shares": (1.0,)})
    assert measurement.measure(set_ones, tmp_path / "new", toy_method, source) == set_ones


def test_later_jobs_take_the_calibration(config, tmp_path):
    jobs.run(config, tmp_path)
    path = tmp_path / calibration.FILE
    least = json.loads(path.read_text())["least"]
    assert len(least) == 4
    assert load_trained(str(tmp_path), "run", "").config.least == tuple(least)
    assert config_lib.load(tmp_path, "workdir").least == ()

    for content, words in (
        ("{", "calibration.json: not JSON"),
        ("[]", "not an object of JSON"),
        ('{"least": "much"}', "least is damaged or of a later version: give the command"),
        ('{"most": [1]}', "most is damaged"),
        ('{"epochs": 9}', "epochs is damaged"),  # a field of the run itself
        ("{}", r"calibration\.json: least is missing: give the command that trained it again"),
        ('{"least": []}', r"calibration\.json: least is damaged"),
        ('{"least": [0, 1, 0]}', "least is damaged"),  # of four classes
        ('{"least": [0, 1, 0, 1, 0]}', "least is damaged"),
        ('{"least": [0, 1, 0, NaN]}', "least is damaged"),
        ('{"least": [0, 1, 0, 1e7]}', "least is damaged"),
        ('{"least": [0, 1, 0, "1"]}', "least is damaged"),
        ('{"least": [0, 1, 0, [1]]}', "least is damaged"),
        ('{"least": [0, 1, 0, true]}', "least is damaged"),
        ('{"least": null}', "least is damaged"),
        ('{"least": {"a": 1, "b": 1, "c": 1, "d": 1}}', "least is damaged"),
        ('{"least": [0, 1, 0, 1], "most": [0, 1, 0, 1]}', "most is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words) as caught:
            load_trained(str(tmp_path), "run", "")
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match=r"calibration\.json is missing.*: finish the training"):
        load_trained(str(tmp_path), "run", "")
    jobs.run(config, tmp_path)
    assert json.loads(path.read_text())["least"] == least


def test_nothing_is_calibrated_where_the_fields_are_set(config, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("fields that are set are calibrated")

    monkeypatch.setattr(toy_method, "calibrate", refuse)
    config.least = (0.1, 0.2, 0.3, 0.4)
    jobs.run(config, tmp_path)
    assert not (tmp_path / calibration.FILE).exists()
    assert load_trained(str(tmp_path), "run", "").config.least == config.least


def test_a_new_training_does_not_keep_the_calibration_of_another(config, tmp_path):
    jobs.run(config, tmp_path / "run")
    calibration.clear(tmp_path / "run")
    assert (tmp_path / "run" / calibration.FILE).is_file()
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "moved")
    calibration.clear(tmp_path / "run")
    assert not (tmp_path / "run" / calibration.FILE).exists()
