"""HistoSegNet as a method: trained, calibrated, continued, and used by the jobs after it."""

import json
import re
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from configs import base, base_tools
from data import synthetic
from tests.conftest import SIZE, tiny_histosegnet
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.checkpoints import load_variables
from wsss_jax.errors import InputError
from wsss_jax.jobs import train
from wsss_jax.methods import histosegnet
from wsss_jax.training import loop, measurement
from wsss_jax.training.trained import load_trained

CLASSES = 4


def _configure(root, **fields):
    config = tiny_histosegnet(root)
    for path, value in fields.items():
        section, _, name = path.rpartition("__")
        (config[section] if section else config)[name] = value
    return config


@pytest.fixture(scope="module")
def run_dir(tissue_dir, tmp_path_factory):
    """A short run."""
    workdir = tmp_path_factory.mktemp("histosegnet") / "run"
    config = _configure(tissue_dir)
    config_lib.validate(config)
    jobs.run(config, workdir)
    return workdir


def test_training_measures_and_calibrates(run_dir, tissue_dir):
    config = config_lib.load(run_dir, "workdir")
    assert len(set(config.model.mean)) == 1 and 0.4 < config.model.mean[0] < 0.9
    assert len(config.loss.class_weights) == CLASSES
    names = [path.stem for path in (tissue_dir / "train").rglob("*.png")]
    labels = np.array([[int(x) for x in re.findall(r"[01]", n[n.index("[") :])] for n in names])
    expected = len(labels) / np.maximum(labels.sum(axis=0), 1)
    np.testing.assert_allclose(config.loss.class_weights, expected)
    thresholds = json.loads((run_dir / "calibration.json").read_text())["cam.thresholds"]
    assert len(thresholds) == CLASSES and all(0 < value < 1 for value in thresholds)
    assert load_trained(str(run_dir), "run", "").config.cam.thresholds == tuple(thresholds)


def test_a_stopped_run_goes_on_bit_for_bit(run_dir, tissue_dir, tmp_path, monkeypatch):
    config, calls = _configure(tissue_dir), []

    def make_stopping(*arguments):
        validate = make_validation(*arguments)

        def stop_in_second_epoch(variables):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return validate(variables)

        return stop_in_second_epoch

    make_validation = train.make_validation
    monkeypatch.setattr(train, "make_validation", make_stopping)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(config, tmp_path / "cut")
    assert not (tmp_path / "cut" / "calibration.json").exists()
    with pytest.raises(InputError, match=r"calibration\.json is missing.*: finish the training"):
        load_trained(str(tmp_path / "cut"), "run", "presence")

    def refuse(*arguments):
        raise AssertionError("the patches are measured again")

    monkeypatch.setattr(measurement, "_read", refuse)
    jobs.run(config, tmp_path / "cut")
    for name in ("config.json", "calibration.json", "history.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (run_dir / name).read_bytes()
    whole, cut = (load_variables(path, None) for path in (run_dir, tmp_path / "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def _change_maps(config):
    config.crf.iterations, config.crf.bilateral_sxy = 1, 20.0
    config.background.weight, config.background.exceptions = 0.5, (1,)
    config.cam.thresholds = (0.1, 0.2, 0.3, 0.4)
    return config


def test_a_trained_run_takes_other_fields_of_its_maps(run_dir, tissue_dir, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a step is trained, or patches are measured")

    monkeypatch.setattr(loop, "train_step", refuse)
    monkeypatch.setattr(measurement, "_read", refuse)
    again = tmp_path / "run"
    shutil.copytree(run_dir, again)
    files = ("config.json", "calibration.json", "history.json")
    jobs.run(_change_maps(_configure(tissue_dir)), again)
    loaded, before = (load_trained(str(path), "run", "") for path in (again, run_dir))
    assert loaded.config.crf.iterations == 1 and loaded.config.cam.thresholds[3] == 0.4
    assert loaded.config.background.to_dict() != before.config.background.to_dict()
    assert loaded.config.model == before.config.model  # what was measured
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, before.variables)
    assert (again / "history.json").read_bytes() == (run_dir / "history.json").read_bytes()
    jobs.run(_configure(tissue_dir), again)  # as it was
    for name in files:
        assert (again / name).read_bytes() == (run_dir / name).read_bytes()


@pytest.mark.parametrize("newest", ["gone", "damaged"])
def test_a_run_that_is_not_trained_to_the_end_keeps_them(run_dir, tissue_dir, tmp_path, newest):
    again = tmp_path / "run"
    shutil.copytree(run_dir, again)
    last = again / "checkpoints" / "6"
    if newest == "gone":
        shutil.rmtree(last)
    else:
        for path in (last / "variables").rglob("*"):
            if path.is_file() and path.stat().st_size > 1000:
                path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"background\.exceptions: .*once all its epochs are tr"):
        jobs.run(_change_maps(_configure(tissue_dir)), again)
    for name in ("config.json", "history.json"):
        assert (again / name).read_bytes() == (run_dir / name).read_bytes()
    jobs.run(_configure(tissue_dir), again)
    whole, cut = (load_variables(path, None) for path in (run_dir, again))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_it_is_evaluated_and_averaged_over_views(run_dir, runs_dir, tmp_path):
    config = base.evaluate(str(run_dir), str(runs_dir / "phase2"))  # also as the gate of phase 2
    config.data.workers, config.batch_size, config.sheet_patches, config.tta = 0, 5, 2, "flips"
    config_lib.validate(config)
    jobs.run(config, tmp_path)
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names == ["majority class", "HistoSegNet", "phase 2", "phase 2 + gate"]
    assert all(0 <= row["miou"] <= 1 for row in rows)


def test_its_grad_cam_becomes_pseudo_masks(run_dir, tmp_path):
    config = base.masks(str(run_dir))
    config.layers, config.data.workers, config.batch_size = ("relu3_3",), 0, 4
    config.sheet_patches = 2
    config_lib.validate(config)
    jobs.run(config, tmp_path / "masks")
    assert len(list((tmp_path / "masks" / "train_PM" / "PM_relu3_3").glob("*.png"))) == 12
    config.layers = ("bn7",)
    words = r"config\.layers names bn7, but .* run of HistoSegNet, which .* at relu3_3 only: set "
    with pytest.raises(InputError, match=words) as caught:
        jobs.run(config, tmp_path / "others")
    assert "--config.layers=\"('relu3_3',)\"" in str(caught.value)
    assert not (tmp_path / "others" / "config.json").exists()  # so that the remedy works there


def _convert(weights, tissue_dir):
    config = base_tools.convert(str(tissue_dir / "dataset.json"))
    config.weights, config.jobs.histosegnet.data.patch_size = str(weights), SIZE
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    config = base_tools.export(str(run_dir))
    config.formats = ("pth", "safetensors")
    folder = tmp_path_factory.mktemp("exported")
    jobs.run(config, folder)
    return folder


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_an_exported_network_is_whole(suffix, run_dir, exported, tissue_dir, tmp_path):
    jobs.run(_convert(exported / f"histosegnet.{suffix}", tissue_dir), tmp_path)
    before, after = (load_trained(str(path), "run", "") for path in (run_dir, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
    for section in ("model", "loss", "cam", "background", "crf"):
        assert after.config[section].to_dict() == before.config[section].to_dict()
    contents = json.loads((exported / "histosegnet.json").read_text())
    assert contents["classes"] == list(before.dataset.classes)
    assert contents["fields"]["model.mean"] == list(before.config.model.mean)
    assert contents["fields"]["cam.thresholds"] == list(before.config.cam.thresholds)


def test_weights_without_what_was_measured_are_refused(exported, tissue_dir, tmp_path):
    weights = tmp_path / "given.pth"
    shutil.copy(exported / "histosegnet.pth", weights)
    contents = json.loads((exported / "histosegnet.json").read_text())
    cases = [
        (None, r"given\.json is not beside it, .*: export the run again, or copy the file"),
        ("[", r"given\.json: not JSON"),
        ({}, r"given\.json: fields is missing or damaged: export the run again"),
        ({"fields": {}}, r"background\.exceptions is missing or damaged"),
        (contents | {"classes": ["a"]}, r"given\.json: the weights are of the classes \('a',\), "),
    ]
    for name, value in (("model.mean", []), ("cam.thresholds", [2.0]), ("model.std", None)):
        fields = contents["fields"] | {name: value}
        cases.append(({"fields": fields}, rf"given\.json: {name} is missing or damaged"))
    for content, words in cases:
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            weights.with_suffix(".json").write_text(text)
        with pytest.raises(InputError, match=words) as caught:
            jobs.run(_convert(weights, tissue_dir), tmp_path / "run")
        assert "\n" not in str(caught.value)


def test_views_of_a_patch_are_averaged_before_the_crf(run_dir):
    trained = load_trained(str(run_dir), "run", "", tta="flips")
    image = np.stack([synthetic.draw_patch(np.random.default_rng(i), SIZE)[0] for i in (0, 1)])
    found = jax.jit(partial(trained.predict, trained.variables))(image)
    config = trained.config
    views = []
    predict = partial(histosegnet.predict, config, trained.network, trained.variables)
    activate = jax.jit(lambda image: predict(image).activations)  # without the CRF
    for axes in ((), (1,), (2,), (1, 2)):
        maps = np.asarray(activate(np.flip(image, axes)))
        views.append(np.flip(maps, [axis + 1 for axis in axes]))
    mean = np.mean(views, axis=0)
    np.testing.assert_allclose(found.activations, mean, atol=1e-5 * np.abs(mean).max())
    label = jax.jit(partial(histosegnet.label_activations, config))
    np.testing.assert_array_equal(found.label_maps, label(found, image))


def test_without_validation_patches_thresholds_are_a_half(tissue_dir, tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    for name in ("train", "dataset.json"):
        (root / name).symlink_to(tissue_dir / name)
    jobs.run(_configure(root), tmp_path / "run")  # the program of `run_dir`
    said = capsys.readouterr().out
    assert said.count("there are no validation patches: a threshold cannot be calibrated") == 1
    loaded = load_trained(str(tmp_path / "run"), "run", "")
    assert loaded.config.cam.thresholds == (0.5,) * CLASSES


@pytest.mark.parametrize(
    ("white", "given", "taken"), [(True, -1, 0.75), (False, -1, 0), (False, 1, 1)]
)
def test_white_background_takes_part_as_the_data_set_says(
    white, given, taken, tissue_dir, tmp_path
):
    description = json.loads((tissue_dir / "dataset.json").read_text()) | {"white": white}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    (tmp_path / "train").symlink_to(tissue_dir / "train")
    config = _configure(tmp_path, background__weight=given)
    config_lib.validate(config)
    completed, _, _ = train.complete(config)
    assert completed.background.weight == taken


def test_thresholds_of_classes_that_cannot_be_told(capsys):
    config = _configure("")
    presence = np.array([[0.2, 0.6], [0.9, 0.7]], np.float32)
    labels = np.array([[0, 1], [1, 1]], np.uint8)
    found = histosegnet.calibrate(config, ("tumor", "stroma"), presence, labels)
    assert found == {"cam.thresholds": (float(np.float32(0.9)), 0.5)}
    assert "all or none of the validation patches have stroma: " in capsys.readouterr().out


def test_figures_of_the_training_patches():
    counts = np.zeros(256, np.int64)
    counts[[10, 30]] = 3, 1
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]], np.uint8)
    found = histosegnet.measure(_configure(""), counts, labels)
    np.testing.assert_allclose(found["model.mean"], [15 / 255] * 3)
    np.testing.assert_allclose(found["model.std"], [np.sqrt(75) / 255] * 3)
    np.testing.assert_allclose(found["loss.class_weights"], [4 / 3, 2, 1])
    counts[30] = 0
    with pytest.raises(InputError, match="all pixels of the training patches have the value 10"):
        histosegnet.measure(_configure(""), counts, labels)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cam__thresholds": (0.5,)}, r"config\.cam\.thresholds has 1 entries but .* has 4 cl"),
        ({"loss__class_weights": (1.0,) * 5}, r"config\.loss\.class_weights has 5 entries"),
        ({"background__exceptions": (4,)}, r"config\.background\.exceptions names class 4 but"),
        ({"data__patch_size": 7, "data__resize": True}, r"patch_size is 7, but the network halves"),
        ({"accumulate": 2}, r"config\.accumulate is 2 but BatchNorm is trained"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, words, tissue_dir, tmp_path):
    config = _configure(tissue_dir, **fields)
    config_lib.validate(config)
    with pytest.raises(InputError, match=words) as caught:
        jobs.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__mean": (0.5,)}, r"config\.model\.mean .*: it must be a sequence of 3.* measured"),
        ({"model__pooling": "median"}, "one of 'maximum', 'mean'"),
        ({"cam__thresholds": (1.5,)}, r"config\.cam\.thresholds is \(1\.5,\)"),
        ({"model__dropout_rates": (0.3,) * 3}, "a sequence of 4"),
        ({"background__weight": -0.5}, r"weight is -0\.5: it must be .* or -1 for what the data"),
    ],
)
def test_impossible_values_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        config_lib.validate(_configure("data", **fields))
