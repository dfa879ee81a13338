"""A table of measured ways: what trainings and later jobs make of it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import convolutions
from tests.conftest import SIZE, draw_variables, tiny_histosegnet
from wsss_jax import config as config_lib
from wsss_jax import convolution_table, jobs, parallel
from wsss_jax.checkpoints import load_variables
from wsss_jax.errors import InputError
from wsss_jax.jobs import train
from wsss_jax.methods import arithmetic, histosegnet
from wsss_jax.models.lowering import DIRECTIONS, Choice, Lowering, list_ways
from wsss_jax.training import history
from wsss_jax.training.trained import load_trained


def _list_unusual(config, platform="cpu"):
    """Chooses ways that the rules do not, where there are such."""
    network = histosegnet.build_network(config, 4)
    choices = []
    for shape in dict.fromkeys(convolutions.record_shapes(network, SIZE).values()):
        ways = []
        for direction in DIRECTIONS:
            by_rule = convolutions.choose_way(shape, direction)
            possible = list_ways(platform, direction, shape)
            ways.append(next(way for way in (*possible[::-1],) if way != by_rule))
        choices.append(Choice(platform, shape, tuple(ways)))
    return choices


def _configure(root, table):
    config = tiny_histosegnet(root)
    config.convolutions.table = str(table)
    return config


@pytest.fixture(scope="module")
def table(tissue_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "convolutions.json"
    config = _configure(tissue_dir, path)
    convolution_table.write(path, "float32", 4, _list_unusual(config))
    return path


@pytest.fixture(scope="module")
def tuned(table, tissue_dir, tmp_path_factory):
    """A run that followed a table."""
    workdir = tmp_path_factory.mktemp("tuned_run") / "run"
    jobs.run(_configure(tissue_dir, table), workdir)
    return workdir


def _ways(workdir):
    return config_lib.load(workdir, "workdir").convolutions.ways


def test_a_run_has_its_ways_and_later_jobs_follow_them(tuned, table, tissue_dir):
    choices = _list_unusual(_configure(tissue_dir, table))
    assert _ways(tuned) == tuple(map(str, sorted(choices)))
    trained = load_trained(str(tuned), "run", "")
    assert trained.network.lowering == Lowering(choices=tuple(sorted(choices)))
    # In another precision nothing was measured.
    other = load_trained(str(tuned), "run", "", "bfloat16")
    assert other.network.lowering == Lowering() and other.network.dtype == "bfloat16"


def test_it_goes_on_with_them_to_the_last_bit_without_the_table(
    tuned, table, tissue_dir, tmp_path, monkeypatch
):
    path = tmp_path / "convolutions.json"
    path.write_bytes(table.read_bytes())
    config, calls = _configure(tissue_dir, path), []

    def stop_in_second_epoch(*arguments):
        validate = make_validation(*arguments)

        def score(variables):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return validate(variables)

        return score

    make_validation = train.make_validation
    monkeypatch.setattr(train, "make_validation", stop_in_second_epoch)
    workdir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        jobs.run(config, workdir)
    path.unlink()
    config.convolutions.table = ""
    jobs.run(config, workdir)
    assert _ways(workdir) == _ways(tuned)
    assert history.load(workdir) == history.load(tuned)
    found, whole = (load_variables(each, None) for each in (workdir, tuned))
    jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_the_ways_are_equal_within_rounding(tissue_dir):
    """Loss and gradients of a network, in float64: in float32 rounding grows with every layer."""
    config = tiny_histosegnet(tissue_dir)
    choices = _list_unusual(config)
    config.precision = "float64"
    image = np.random.default_rng(0).random((2, SIZE, SIZE, 3))
    results = []
    with jax.enable_x64(True):
        for ways in ((), tuple(map(str, choices))):
            config.convolutions.ways = ways
            network = histosegnet.build_network(config, 4)
            variables = draw_variables(network, image)

            def loss(variables, network=network):
                return (network.apply(variables, image, train=False)[0] ** 2).sum()

            quickly = {"xla_backend_optimization_level": 0}
            results.append(jax.jit(jax.grad(loss), compiler_options=quickly)(variables)["params"])
    by_rule, chosen = map(jax.tree.leaves, results)
    assert any((a != b).any() for a, b in zip(by_rule, chosen, strict=True))
    for a, b in zip(by_rule, chosen, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(a).max())


def test_without_a_table_nothing_is_chosen(runs_dir):
    for job in ("phase1", "phase2"):
        assert _ways(runs_dir / job) == ()
        assert load_trained(str(runs_dir / job), "run", "").network.lowering == Lowering()


def _take_up(table, tmp_path, **fields):
    config = tiny_histosegnet(tmp_path)
    config.convolutions.table = str(table)
    config.update(fields)
    return convolution_table.take_up(config_lib.freeze(config), tmp_path).convolutions.ways


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {"NVIDIA H100 80GB HBM3": next(iter(content.values()))},
        lambda content: {name: {"jax 0.1": {}} for name in content},
        lambda content: {},
    ],
)
def test_a_table_of_something_else_is_not_followed_and_that_is_said(
    change, table, tmp_path, capsys
):
    other = tmp_path / "convolutions.json"
    other.write_text(json.dumps(change(json.loads(table.read_bytes()))))
    assert _take_up(other, tmp_path) == ()
    said = capsys.readouterr().out
    assert said.count(f"{other} has no ways of convolutions for {parallel.name_device()}") == 1
    assert "python -m benchmarks.convolutions --tune --precision=float32" in said


def test_each_precision_has_its_own(table, tmp_path, capsys):
    path = tmp_path / "convolutions.json"
    path.write_bytes(table.read_bytes())
    before = _take_up(path, tmp_path)
    assert before and "measured in float32 with 4 images" in capsys.readouterr().out
    assert _take_up(path, tmp_path, precision="tensorfloat32") == ()
    convolution_table.write(path, "tensorfloat32", 8, [])
    assert _take_up(path, tmp_path) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a": 1}',
        '{"a": {"jax 1": {"float32": {"batch": 2}}}}',
        '{"a": {"jax 1": {"float32": {"batch": "2", "ways": []}}}}',
        '{"a": {"jax 1": {"float32": {"batch": 2, "ways": ["cpu, 3x3: XLA, XLA, XLA"]}}}}',
        '{"a": {"jax 1": {"float32": {"batch": 2, "ways": [7]}}}}',
    ],
)
def test_a_damaged_table_is_named(text, tmp_path):
    path = tmp_path / "convolutions.json"
    path.write_text(text)
    words = rf"^{path}: no table .*remove it.*--tune\), or set --config\.convolutions\.table=''\Z"
    with pytest.raises(InputError, match=words):
        _take_up(path, tmp_path)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(InputError, match=r": cannot be read \(Is a directory\)"):
        _take_up(tmp_path, tmp_path)


def test_processes_must_agree(table, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "gather", lambda x: np.stack([x, x + 1]))
    with pytest.raises(InputError, match=r"convolutions\.json differs among the processes"):
        _take_up(table, tmp_path)


def test_a_table_keeps_what_was_measured_before(tissue_dir, tmp_path):
    path = tmp_path / "below" / "convolutions.json"
    choices = _list_unusual(tiny_histosegnet(tissue_dir))
    convolution_table.write(path, "float32", 4, choices[:2])
    convolution_table.write(path, "float32", 4, choices[1:])
    convolution_table.write(path, "bfloat16", 8, choices[:1])
    (versions,) = json.loads(path.read_bytes()).values()
    ((version, precisions),) = versions.items()
    assert version == f"jax {jax.__version__}"
    assert precisions == {
        "bfloat16": {"batch": 8, "ways": [str(choices[0])]},
        "float32": {"batch": 4, "ways": [str(choice) for choice in sorted(choices)]},
    }


def test_ways_are_checked():
    config = tiny_histosegnet(Path("data"))
    config.convolutions.ways = ("cpu, 3x3, 4 to 4 at 8: product, XLA, XLA",)
    with pytest.raises(InputError, match=r"config\.convolutions\.ways is .*it must be a sequence"):
        config_lib.validate(config)


def test_tensorfloat32_has_arrays_of_float32():
    config = tiny_histosegnet(Path("data"))
    config.precision = "tensorfloat32"
    config_lib.validate(config)
    network = histosegnet.build_network(config, 4)
    assert network.dtype == "float32" and network.lowering == Lowering(tensorfloat32=True)
    exact = arithmetic.set_precision(config, "float32")
    assert histosegnet.build_network(exact, 4).lowering == Lowering()
