import os
import shutil
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from data.dataset import load_dataset
from data.synthetic import DATASET
from tests import short_run
from tests.conftest import tiny_phase1, tiny_phase2
from wsss_jax import inputs, jobs, parallel, sources
from wsss_jax.checkpoints import Checkpoints, load_variables
from wsss_jax.errors import InputError, Preempted
from wsss_jax.methods import phase1, phase2
from wsss_jax.models.layers import BLOCK_OUTPUT, Conv, Dropout
from wsss_jax.state import State, network_shapes
from wsss_jax.training import loop
from wsss_jax.training.patches import Patches
from wsss_jax.training.step import (
    compute_gradients,
    make_state,
    merge,
    partition,
    state_shapes,
    update_average,
)
from wsss_jax.training.trained import load_trained
from wsss_jax.training.validation import make_validation


class _Run:
    """A training of the drawn patches, to be started in workdirs."""

    def __init__(self, root, config):
        self.config, dataset = config, load_dataset("", root)
        self.source = sources.open_source(config.data, dataset, "train")
        validation = sources.open_source(config.data, dataset, "val")
        steps = inputs.count_steps(len(self.source), config.batch_size, config.drop_last)
        self.task = phase1.make_task(config, dataset.num_classes, config.epochs * steps)
        self.validate = make_validation(config, dataset.num_classes, validation)

    def fit(self, workdir, validate=None, validation=None):
        patches = Patches(DATASET, self.source, validation)
        return loop.fit(self.config, workdir, self.task, patches, validate or self.validate)


@pytest.fixture
def small_network(monkeypatch):
    """Where training and validation matter, not ResNet38, which takes ten times as long."""
    monkeypatch.setattr(phase1, "build_network", short_run.build_network)


@pytest.fixture(scope="module")
def trained(tissue_dir, tmp_path_factory):
    """A run with the network of phase 1, its folder and its history."""
    run, workdir = _Run(tissue_dir, tiny_phase1(tissue_dir)), tmp_path_factory.mktemp("trained")
    return run, workdir, run.fit(workdir)


def _variables(workdir, task):
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore_latest(state_shapes(task))[0]
    checkpoints.close()
    return state


def test_partition_and_merge_are_inverses():
    params = {"b2": {"a": {"kernel": 1, "scale": 2}}, "fc8": {"kernel": 3}}
    one, other = partition(params, lambda path: path[-1] == "kernel")
    assert one == {"b2": {"a": {"kernel": 1}}, "fc8": {"kernel": 3}}
    assert other == {"b2": {"a": {"scale": 2}}}
    assert merge(one, other) == params


def test_a_run_goes_on_where_it_stopped(trained, tmp_path):
    """Stopped in the validation of its second epoch and started again: as if never disturbed."""
    run, whole_dir, history = trained
    assert [figures["epoch"] for figures in history] == [0, 1]
    assert {"loss", "mu", "val_exact_match", "val_patch_accuracy", "miou"} <= history[0].keys()
    assert all(np.isfinite(figures["loss"]) for figures in history)
    assert list((whole_dir / "tensorboard").glob("events*"))

    calls = []

    def stop_in_second_epoch(variables):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run.validate(variables)

    with pytest.raises(KeyboardInterrupt):
        run.fit(tmp_path, stop_in_second_epoch)
    assert run.fit(tmp_path) == history
    whole, cut = (_variables(workdir, run.task) for workdir in (whole_dir, tmp_path))
    assert int(whole.step) == 6
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_run_gives_its_moving_averages(small_network, tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.ema.decay = 0.5
    config.optimizer.learning_rate = 1e-4  # at that of ResNet38 the small network diverges
    run, validated = _Run(tissue_dir, config), []

    def validate(variables):
        validated.append(jax.tree.map(np.asarray, variables))
        return {"miou": 0.5}

    run.fit(tmp_path, validate)
    state = _variables(tmp_path, run.task._replace(ema_decay=0.5))
    for found in (state.average, load_variables(tmp_path, None)):
        jax.tree.map(np.testing.assert_array_equal, found, validated[-1])
    trained, average = (tree["params"]["fc8"]["kernel"] for tree in (state.variables, found))
    assert 0 < np.abs(trained - average).max() < 0.1 * np.abs(trained).max()


def test_the_average_by_hand():
    after = State(
        step=jnp.int32(2),
        variables={"params": {"a": jnp.float32(5), "frozen": jnp.float32(0.1)}},
        opt_state=(),
        average={"params": {"a": jnp.float32(1), "frozen": jnp.float32(0.1)}},
    )
    for decay, expected in ((0.2, 5 - 0.2 * 4), (0.9, 5 - 0.25 * 4)):  # (1 + 2) / (10 + 2)
        average = update_average(after, decay)["params"]
        np.testing.assert_allclose(average["a"], expected, rtol=1e-6)
        assert average["frozen"] == after.average["params"]["frozen"]


def test_frozen_layers_keep_their_weights(trained, tissue_dir, tmp_path):
    first, first_dir, _ = trained
    before = _variables(first_dir, first.task)

    config = tiny_phase1(tissue_dir)
    config.epochs, config.init, config.model.batch_norm = 1, str(first_dir), "frozen"
    config.optimizer.learning_rate = 1e-6  # the running statistics of six steps mean little
    run = _Run(tissue_dir, config)
    run.fit(tmp_path)
    after = _variables(tmp_path, run.task)

    def same(path):
        one, other = before.variables, after.variables
        for name in path:
            one, other = one[name], other[name]
        return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))

    assert same(["batch_stats"])
    assert all(same(["params", block]) for block in config.model.frozen_blocks)
    assert same(["params", "b5", "bn_branch2a"])
    assert not same(["params", "b5", "conv_branch2a"]) and not same(["params", "fc8"])


def test_a_loss_that_is_not_finite_stops_the_run(small_network, tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.optimizer.learning_rate = 1e30
    run = _Run(tissue_dir, config)
    with pytest.raises(
        InputError, match=r"the loss is not finite at step \d+ \(patches .*learning_rate"
    ):
        run.fit(tmp_path)


def test_too_few_patches(small_network, tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.batch_size = 50
    run = _Run(tissue_dir, config)
    with pytest.raises(InputError, match="only 12 training patches"):
        run.fit(tmp_path)
    assert not list(tmp_path.iterdir())


def test_validation_masks_without_a_pixel_that_counts(tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.select = "best"
    run = _Run(tissue_dir, config)
    patch = run.source[0]
    for masks, words in (
        ({}, r"the validation patches of .* have no masks: add val/mask, .*select=last"),
        (
            {"masks": np.full((1, 32, 32), DATASET.excluded, np.uint8)},
            r"no pixel of the validation masks .*select=last",
        ),
    ):
        with pytest.raises(InputError, match=words):
            run.fit(tmp_path, validation=[patch | masks])
    assert not list(tmp_path.iterdir())


def test_only_the_first_epoch_compiles(small_network, tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.epochs, config.pda.hold_epochs = 3, 1  # mu changes in every epoch
    config.optimizer.learning_rate = 1e-4  # as above
    run = _Run(tissue_dir, config)
    compiled, after_epoch = [], []

    def validate(variables):
        scores = run.validate(variables)
        after_epoch.append(len(compiled))
        return scores

    def listen(name, seconds, **_):
        if "backend_compile" in name or "compilation_cache/cache_retrieval" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run.fit(tmp_path, validate)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert 0 < after_epoch[0] == after_epoch[1] == after_epoch[2]


class _Dropping(nn.Module):
    """A network without BatchNorm, whose dropout and dice are by position."""

    @nn.compact
    def __call__(self, x, *, train, mu=None, weight=None, position=None):
        x = checkpoint_name(Conv(8, name="conv")(x), BLOCK_OUTPUT)
        x = Dropout(0.5)(nn.relu(x), deterministic=not train, position=position)
        logits = nn.Dense(4, name="fc8")(x.mean(axis=(1, 2)))
        return logits, {"peaks": logits}


@pytest.mark.parametrize("changed", [{"parts": 2}, {"parts": 4}, {"rematerialize": True}])
def test_saving_memory_does_not_change_the_gradients(changed):
    config, model = tiny_phase1("unused"), _Dropping()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "label": rng.integers(0, 2, (8, 4), np.uint8),
        "weight": np.float32([1, 1, 1, 1, 1, 0, 0, 0]),  # parts with nothing that counts
        "position": np.arange(8, dtype=np.int32),
    }
    task = phase1.make_task(config, 4, 10)._replace(
        network=model, loss=phase1.make_loss(config, model), is_trained=lambda _: True
    )
    variables = model.init(jax.random.key(0), batch["image"].astype(np.float32), train=False)
    found = []
    for one in (task, task._replace(**changed)):
        state = make_state(one, {**variables, "batch_stats": {}})
        step = jax.pmap(
            partial(compute_gradients, one), parallel.AXIS, in_axes=(None, 0, None, None)
        )
        shard = {name: array[None] for name, array in batch.items()}
        found.append(step(state, shard, {"mu": np.float32(0.9)}, jax.random.key(1)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *found)


def test_the_networks_say_what_to_keep():
    """With `rematerialize` everything but the blocks' outputs is forgotten."""
    second = tiny_phase2("unused")
    second.model.blocks = (3, 4, 23, 3)
    for build, config, blocks in (
        (phase1.build_network, tiny_phase1("unused"), 19),  # conv1a, b2 ... b7, bn7
        (phase2.build_network, second, 33),
    ):
        model = build(config, 4)
        shapes = network_shapes(model)
        image = np.zeros((1, 32, 32, 3), np.float32)
        traced = jax.make_jaxpr(partial(model.apply, train=False))(shapes, image)
        assert str(traced).count(f"name={BLOCK_OUTPUT}") == blocks


def test_trained_statistics_need_the_whole_batch(tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.accumulate = 2
    with pytest.raises(InputError, match=r"accumulate is 2 .*--config\.rematerialize=True"):
        jobs.run(config, tmp_path)


@pytest.mark.parametrize("history", ["", "[{", "null", "3", '{"epoch": 0}'])
def test_a_damaged_history_is_named(history, runs_dir, tmp_path, capsys):
    shutil.copytree(runs_dir / "phase1", tmp_path / "run")
    (tmp_path / "run" / "history.json").write_text(history)
    load_trained(str(tmp_path / "run"), "phase1", "")
    said = capsys.readouterr().out
    assert "history.json: not " in said and "how long it was trained is not known" in said


def test_a_run_goes_on_from_a_damaged_history(trained, tmp_path):
    run, whole_dir, history = trained
    shutil.copytree(whole_dir, tmp_path / "run")
    (tmp_path / "run" / "history.json").write_text("nul")
    assert run.fit(tmp_path / "run") == history


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_save_and_name_themselves(number, small_network, tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    run = _Run(tissue_dir, config)
    told = []

    def validate(variables):
        if not told:
            told.append(number)
            os.kill(os.getpid(), number)
        return {"miou": 0.0}

    with pytest.raises(Preempted, match=f"stopped by {number.name} after step 4 of 6; the same"):
        run.fit(tmp_path, validate)
    assert int(_variables(tmp_path, run.task).step) == 4
