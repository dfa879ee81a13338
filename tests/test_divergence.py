"""Training that fails is noticed, says what helps, and goes back by itself if it may."""

import itertools
import json
import random
import shutil
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import checkpoint_managers

from data.dataset import load_dataset
from tests.conftest import tiny_phase1
from tests.short_run import (
    FAILING,
    AttendingNetwork,
    configure_failing,
    make_attending_task,
)
from wsss_jax import sources
from wsss_jax.checkpoints import Checkpoints, has_checkpoint, list_steps, load_variables
from wsss_jax.errors import InputError, Preempted
from wsss_jax.methods import classification, phase1
from wsss_jax.training import divergence, loop
from wsss_jax.training.divergence import COLLAPSED, MOST_RESTORES, NOT_FINITE, Diverged, Failure
from wsss_jax.training.patches import Patches
from wsss_jax.training.step import complete_sums, make_state
from wsss_jax.training.task import Collapse
from wsss_jax.training.trained import load_trained


class _Saved(NamedTuple):
    step: int
    metrics: dict | None


@pytest.mark.parametrize("window", [1, 5, 12])
def test_what_a_run_may_go_back_to_is_kept_however_often_it_is_interrupted(window):
    """Wherever a failure may have begun, target and best are those of a run that keeps all."""
    regular, moments = divergence.RegularSteps(every=4, of_epoch=6), random.Random(0)
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics["miou"],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
            divergence.KeepRegular(regular, window, "miou"),
        ]
    )
    for signals in (0.0, 0.3, 1.0):
        everything, kept = [], []
        for step in range(60):
            if step not in regular and moments.random() >= signals:
                continue
            scores = {"miou": moments.choice([0.1, 0.2, 0.3])} if step and step % 6 == 0 else None
            everything.append(_Saved(step, scores))
            kept.append(_Saved(step, scores))
            preserved = policy.should_preserve(kept, context=None)
            kept = list(itertools.compress(kept, preserved))
            for begun in range(max(1, step - window + 1), step + 2):
                expected, found = (
                    _find_targets(saved, begun, regular) for saved in (everything, kept)
                )
                assert found == expected
    assert len(kept) < 12


def _find_targets(saved, begun, regular):
    """Returns the steps to go back to one after the other, and the best up to each."""
    steps = [each.step for each in saved if each.step in regular and each.step < begun]
    scores = [(each.metrics["miou"], each.step) for each in saved if each.metrics]
    return [
        (target, max((score for score in scores if score[1] <= target), default=None))
        for target in sorted(steps)[-MOST_RESTORES:]
    ]


def test_a_collapse_is_a_number_of_steps_in_a_row():
    """Step by step as a list of losses says; what was counted once stays."""
    collapse = Collapse(lambda metrics, values: metrics["loss"] == values["dead"], 3, "dead")
    task = phase1.make_task(tiny_phase1("unused"), 4, 10)._replace(collapse=collapse)
    count = jax.jit(partial(divergence.count, task))

    def go(losses):
        counts, failures = divergence.zero_counts(task), []
        for step, loss in enumerate(losses):
            counts = count(counts, jnp.int32(step), {"loss": jnp.float32(loss)}, {"dead": 7.0})
            failures.append(divergence.find_failure(task, counts, step + 1))
        return failures

    assert go([7, 7, 1, 7, 7, 1, 7]) == [None] * 7
    assert go([1, 7, 7, 7, 7]) == [None] * 3 + [Failure(COLLAPSED, 1)] * 2
    assert go([7, 7, 7, 1, 1]) == [None] * 2 + [Failure(COLLAPSED, 0)] * 3
    nan = [None] * 2 + [Failure(NOT_FINITE, 2)] * 3
    assert go([1, 7, np.nan, 1, np.inf]) == nan


def test_the_attention_collapses_only_where_it_is_on():
    pda = tiny_phase1("unused").pda
    test = phase1.make_collapse(pda).is_collapsed
    for loss, above, mu, expected in (
        (0.6931, 0.5, 1.0, True),
        (0.6940, 0.5, 0.65, True),
        (0.6945, 0.5, 1.0, False),
        (0.6931, 0.5, 0.0, False),
        (np.nan, 1.0, 1.0, False),
        (3.0, 0.0, 1.0, True),
        (3.0, 1e-3, 1.0, False),
        (3.0, 0.0, 0.0, False),
    ):
        metrics = {"loss": jnp.float32(loss), "maps_above_0": jnp.float32(above)}
        assert bool(test(metrics, {"mu": jnp.float32(mu)})) == expected
    # Maps that say that classes are rare are below 0, too, where the attention leaves features.
    for share, expected in ((0.99, False), (1.0, True)):
        values = {"mu": jnp.float32(1), "attention_share": jnp.float32(share)}
        rare = {"loss": jnp.float32(0.3), "maps_above_0": jnp.float32(0)}
        assert bool(test(rare, values)) == expected
    pda.relu = pda.normalize = True
    assert not phase1.make_collapse(pda).is_collapsed(rare, values)
    pda.collapse_steps = 0
    assert phase1.make_collapse(pda) is None


class _Peaked(nn.Module):
    """Gives the maxima of class maps that its parameters are."""

    @nn.compact
    def __call__(self, x, *, train, mu, weight, position):
        peaks = self.param("peaks", nn.initializers.zeros, (len(x), 4))
        return jnp.full((len(x), 4), 2.0), {"peaks": peaks}


def test_the_share_of_maps_above_0_is_of_patches_that_count():
    config = tiny_phase1("unused")
    batch = {
        "image": jnp.zeros((3, 8, 8, 3), jnp.uint8),
        "label": jnp.ones((3, 4), jnp.uint8),
        "weight": jnp.float32([1, 1, 0]),  # the last only fills the batch
        "position": jnp.arange(3, dtype=jnp.int32),
    }
    sizes, values = classification.count_patches(batch), {"mu": jnp.float32(0.9)}
    compute = phase1.make_loss(config, _Peaked())
    none, two = [-1.0, 0.0, -3.0, -1.0], [1e-9, -1.0, 5.0, 0.0]
    for peaks, share in (
        ([none, none, two], 0.0),
        ([none, two, two], 0.25),
        ([two, two, none], 0.5),
        ([none, [np.nan, -1.0, -1.0, -1.0], none], 0.125),  # a failure of another kind
    ):
        variables = {"params": {"peaks": jnp.float32(peaks)}, "batch_stats": {}}
        _, (_, figures) = compute(variables, batch, sizes, values, jax.random.key(1))
        assert figures["maps_above_0"] == share


def test_maps_that_are_all_below_0_are_a_collapse(tissue_dir, tmp_path):
    """Without ReLU (as the paper has it): logits are not 0, the loss is not ln 2."""
    config = configure_failing(tissue_dir, STUCK)
    config.pda.relu, config.epochs = False, 4
    dataset = load_dataset("", tissue_dir)
    source = sources.open_source(config.data, dataset, "train")
    network = AttendingNetwork(relu=False, largest=0.0)
    task = make_attending_task(config, len(source))._replace(
        network=network, loss=phase1.make_loss(config, network), optimizer=optax.sgd(1e-6)
    )
    with pytest.raises(Diverged, match=r"or no class activation map is above 0, for 6 steps") as no:
        loop.fit(config, tmp_path, task, Patches(dataset, source))
    assert no.value.failure == Failure(COLLAPSED, 3)  # the attention begins after step 3
    history = json.loads((tmp_path / "history.json").read_text())
    assert all(abs(each["loss"] - np.log(2)) > 0.1 for each in history)


def test_a_run_goes_back_to_a_state_from_before_the_failure():
    steps = [0, 4, 6, 8, 12]
    for failure, checkpoint in (
        (Failure(NOT_FINITE, 13), 12),
        (Failure(NOT_FINITE, 12), 8),  # what the first bad step began with may be bad
        (Failure(COLLAPSED, 7), 6),
        (Failure(COLLAPSED, 0), 0),
        (Failure(NOT_FINITE, 0), None),
    ):
        assert divergence.choose_checkpoint(failure, steps, []) == checkpoint
    restored = []
    for step, expected in ((7, 6), (7, 4), (5, 0), (3, 0), (9, 8)):  # never the same, if it can be
        failure = Failure(COLLAPSED, step)
        checkpoint = divergence.choose_checkpoint(failure, steps, restored)
        restored.append(divergence.record(failure, checkpoint, restored))
        assert checkpoint == expected
    assert [each["rate_factor"] for each in restored] == [0.5, 0.25, 0.125, 0.0625, 0.03125]
    by_epoch = [divergence.find_restored(restored, epoch, 4) for epoch in range(4)]
    assert by_epoch == [restored[:4], [], restored[4:], []]


def _fit(config, workdir):
    dataset = load_dataset("", config.data.root)
    source = sources.open_source(config.data, dataset, "train")
    task = make_attending_task(config, len(source))
    return loop.fit(config, workdir, task, Patches(dataset, source))


NAN, STUCK = FAILING, 3  # seeds


@pytest.fixture
def unsaved(monkeypatch):
    """Where no test reads the checkpoints, which take longer than the steps between them."""
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (NAN, r"the loss is not finite at step \d+ \(patches "),
        (STUCK, r"the attention has collapsed: .* for 6 steps from step \d+: "),
    ],
)
def test_the_released_settings_fail_as_in_public_logs(seed, words, unsaved, tissue_dir, tmp_path):
    """The attention begins after step 3: soon the loss is not a number, or ln 2 for ever."""
    remedies = (
        r"on_divergence=restore.*learning_rate=0\.005, .*clip_norm=1, .*normalize=True, .*200$"
    )
    with pytest.raises(Diverged, match=f"{words}.*{remedies}") as caught:
        _fit(configure_failing(tissue_dir, seed), tmp_path)
    assert 3 < caught.value.failure.step < 12


@pytest.mark.parametrize(
    ("field", "value"),
    [("optimizer.clip_norm", 1.0), ("pda.normalize", True), ("pda.warm_up", 24)],
)
def test_each_remedy_keeps_training_alive(field, value, unsaved, tissue_dir, tmp_path):
    for seed in (NAN, STUCK):
        config = configure_failing(tissue_dir, seed)
        config.update_from_flattened_dict({field: value})
        history = _fit(config, tmp_path / str(seed))
        assert len(history) == 10 and all(np.isfinite(each["loss"]) for each in history)


def test_going_back_keeps_training_alive_and_is_in_the_history(tissue_dir, tmp_path):
    for seed, reason in ((NAN, NOT_FINITE), (STUCK, COLLAPSED)):
        config = configure_failing(tissue_dir, seed)
        config.on_divergence = "restore"
        history = _fit(config, tmp_path / str(seed))
        assert len(history) == 10 and all(np.isfinite(each["loss"]) for each in history)
        restored = [each for figures in history for each in figures.get("restored", [])]
        assert restored[0]["reason"] == reason and 0 < len(restored) <= MOST_RESTORES
        assert history[-1]["rate_factor"] == restored[-1]["rate_factor"] < 1


@pytest.mark.long
def test_a_run_that_fails_ends_the_same_however_it_is_stopped_and_logged(
    tissue_dir, tmp_path, monkeypatch
):
    """Stopped with a checkpoint after every fourth step, with other steps of the log."""
    config = configure_failing(tissue_dir, NAN)
    config.epochs, config.checkpoint_every, config.on_divergence = 5, 2, "restore"
    history = _fit(config, tmp_path / "whole")
    assert any("restored" in figures for figures in history)

    calls, starts = itertools.count(1), 0
    monkeypatch.setattr(
        loop.parallel, "agree_to_stop", lambda step, terminated: next(calls) % 4 == 0
    )
    config.log_every = 1000
    found = None
    while found is None:
        starts += 1
        try:
            found = _fit(config, tmp_path / "cut")
        except Preempted:
            continue
    assert starts > 3 and found == history
    whole, cut = (load_variables(tmp_path / name, None) for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)

    config.checkpoint_every = 3
    with pytest.raises(InputError, match="checkpoint_every: 2 / 3"):
        _fit(config, tmp_path / "cut")


def test_after_going_back_three_times_the_run_stops(tissue_dir, tmp_path, monkeypatch):
    """At a rate that an eighth does not help; the message says what was tried."""
    config = configure_failing(tissue_dir, NAN)
    config.optimizer.learning_rate, config.on_divergence = 1e30, "restore"
    tried = r"gone back 3 times and with 0\.125 of the learning rate .*learning_rate=6\.25e\+28,"
    with pytest.raises(Diverged, match=tried):
        _fit(config, tmp_path)


def test_weights_that_the_last_step_spoils_are_not_kept(tissue_dir, tmp_path):
    """Its loss is fine, and no step comes after it that would show them."""
    config = configure_failing(tissue_dir, NAN)
    config.epochs, last = 1, 2
    dataset = load_dataset("", tissue_dir)
    source = sources.open_source(config.data, dataset, "train")
    task = make_attending_task(config, len(source))._replace(
        optimizer=optax.sgd(lambda step: jnp.where(step == last, jnp.inf, 1e-3))
    )
    with pytest.raises(Diverged, match=r"the loss is not finite at step 4: give the same"):
        loop.fit(config, tmp_path, task, Patches(dataset, source))
    assert not has_checkpoint(tmp_path)


def test_what_fails_at_once_cannot_be_restored(tissue_dir):
    config = configure_failing(tissue_dir, NAN)
    task = phase1.make_task(config, 4, 10)
    error = divergence.make_error(Failure(NOT_FINITE, 0), config, task, ["a"], [])
    assert "on_divergence" not in str(error) and "(patches a): start again with" in str(error)


def test_a_run_that_has_only_its_first_state_is_not_trained(tissue_dir, tmp_path, monkeypatch):
    """Where it may go back, it saves what it began with."""
    config = configure_failing(tissue_dir, NAN)
    config.on_divergence, config.checkpoint_every = "restore", 2
    monkeypatch.setattr(loop.parallel, "agree_to_stop", lambda step, terminated: True)
    with pytest.raises(Preempted):
        _fit(config, tmp_path)
    assert list_steps(tmp_path) == [0, 1]
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with pytest.raises(InputError, match="not trained yet; train that phase first"):
        load_trained(str(tmp_path), "phase1", "presence")


def test_checkpoints_without_a_count_go_on(tmp_path):
    """Those of earlier versions have none of a collapse, and a run may stop counting."""
    config = tiny_phase1("unused")
    tasks = []
    for steps in (0, 50):
        config.pda.collapse_steps = steps
        task = phase1.make_task(config, 4, 10)
        tasks.append(task._replace(optimizer=optax.sgd(1.0), is_trained=lambda path: False))
    variables = {"params": {"fc8": {"kernel": jnp.ones(3)}}, "batch_stats": {}}
    for number, (before, now) in enumerate((tasks, tasks[::-1])):
        checkpoints = Checkpoints(tmp_path / str(number))
        saved = make_state(before, variables)
        checkpoints.save(saved, {"history": []}, None)
        like = jax.eval_shape(lambda now=now: make_state(now, variables))
        found = complete_sums(now, checkpoints.restore_latest(like)[0])
        jax.tree.map(np.testing.assert_array_equal, found, make_state(now, variables))
        checkpoints.close()
