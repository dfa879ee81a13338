"""Chains over seeds: which runs there are, where they lie, and what is done again."""

from pathlib import Path

import pytest

from data.synthetic import DATASET
from tests.fake_jobs import STEPS, Fake, make_config
from wsss_jax import chains, jobs, runs
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError


def plan(config, workdir, seed):
    return chains.plan(config.steps, config.jobs, workdir, seed)


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(jobs, "run", fake.run)
    return fake


def test_steps_read_those_of_their_own_seed_and_share_what_is_equal(tmp_path):
    config = make_config("paper", "slow:paper")
    config.jobs.slow.lung_phase2.optimizer.learning_rate = 0.05
    config.jobs.slow.lung_evaluate.runs = ("runs/lung_phase2", "runs/other")
    config_lib.validate(config)
    planned = plan(config_lib.freeze(config), tmp_path, 7)
    folder = tmp_path / "seed7"
    own = [folder / "paper" / step for step in STEPS]
    assert [step.folder for step in planned["paper"]] == own
    assert [step.folder for step in planned["slow"]] == [
        *own[:2],
        folder / "slow" / "lung_phase2",
        folder / "slow" / "lung_evaluate",
    ]
    first, masks, second, scoring = planned["slow"]
    assert first.config.seed == masks.config.seed == second.config.seed == 7
    assert "seed" not in scoring.config
    assert masks.config.phase1 == scoring.config.phase1 == str(own[0])
    assert second.config.masks == str(own[1])
    assert scoring.config.runs == (str(folder / "slow" / "lung_phase2"), "runs/other")
    assert scoring.earlier == (own[0], folder / "slow" / "lung_phase2")
    # Nothing else differs from what `main.py` would do.
    assert config_lib.differences(first.config, config.jobs.paper.lung_phase1) == ["seed: 7 / 0"]


def test_a_path_into_an_earlier_run_is_replaced_too(tmp_path):
    config = make_config("paper")
    config.jobs.paper.lung_phase2.masks = "runs/lung_masks/train_PM/PM_bn7"
    config.jobs.paper.lung_phase2.init = "runs/lung_masks_of_others"
    *_, masks, second, _ = plan(config_lib.freeze(config), tmp_path, 0)["paper"]
    assert second.config.masks == str(masks.folder / "train_PM" / "PM_bn7")
    assert second.config.init == "runs/lung_masks_of_others"
    assert second.earlier == (masks.folder,)


def test_a_run_that_has_begun_is_shared_by_variants_that_come_later(tmp_path):
    (tmp_path / "seed0" / "second" / "lung_phase1").mkdir(parents=True)
    (tmp_path / "seed0" / "second" / "lung_phase1" / "config.json").touch()
    planned = plan(make_config("first:paper", "second:paper"), tmp_path, 0)
    for variant in ("first", "second"):
        places = [step.folder.parent.name for step in planned[variant]]
        assert places == ["second", "first", "first", "first"]


def test_finished_steps_are_not_done_again(tmp_path, fake):
    config = make_config("paper", "slow:paper", seeds=(0,))
    config.jobs.slow.lung_phase2.optimizer.learning_rate = 0.05
    jobs.run(config, tmp_path)
    assert fake.done == [
        *(f"seed0/paper/{step}" for step in STEPS),
        "seed0/slow/lung_phase2",
        "seed0/slow/lung_evaluate",
    ]
    table = (tmp_path / "scores.json").read_bytes()
    fake.done.clear()
    jobs.run(config, tmp_path)
    assert not fake.done and (tmp_path / "scores.json").read_bytes() == table

    config.seeds = (0, 3)
    jobs.run(config, tmp_path)
    assert len(fake.done) == 6 and all(name.startswith("seed3/") for name in fake.done)

    fake.done.clear()
    config.jobs.slow.lung_phase2.log_every = 1  # other settings: the job sees to what is left
    jobs.run(config, tmp_path)
    assert fake.done == [
        f"seed{seed}/slow/{step}" for seed in (0, 3) for step in ("lung_phase2", "lung_evaluate")
    ]

    fake.done.clear()
    record = chains.record_path(tmp_path / "seed3" / "paper" / "lung_masks")
    record.write_text(record.read_text()[:50])  # a new one makes those that read it do so again
    jobs.run(config, tmp_path)
    assert fake.done == [
        *(f"seed3/paper/{step}" for step in STEPS[1:]),
        "seed3/slow/lung_phase2",
        "seed3/slow/lung_evaluate",
    ]


def test_a_workdir_may_be_moved(tmp_path, fake, monkeypatch):
    config = make_config("paper", seeds=(0,))
    jobs.run(config, tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    fake.done.clear()
    jobs.run(config, Path("two"))
    assert not fake.done


def test_a_refused_setting_costs_no_finished_step(tmp_path, fake):
    config = make_config("paper", seeds=(0,))
    jobs.run(config, tmp_path)
    mistaken = make_config("paper", seeds=(0,))
    mistaken.jobs.paper.lung_phase1.optimizer.learning_rate = 5.0
    refusal = InputError(
        "config.pda.decay is .5, not --config.x: see a/config.json and set --config.seed"
    )
    fake.fails = {"lung_phase1": refusal}
    of_step = r"config\.jobs\.paper\.lung_phase1"
    words = (
        rf": {of_step}\.pda\.decay is .*not --config\.x: see a/config\.json .* --{of_step}\.seed$"
    )
    with pytest.raises(InputError, match=words):
        jobs.run(mistaken, tmp_path)
    # The stand-in has written its settings into the folder, which a job that refuses them does not.
    runs.save(config.jobs.paper.lung_phase1, DATASET, tmp_path / "seed0" / "paper" / "lung_phase1")
    fake.fails = {}
    fake.done.clear()
    jobs.run(config, tmp_path)
    assert not fake.done


def test_a_folder_that_another_run_was_given_is_not_finished(tmp_path, fake):
    config = make_config("paper", seeds=(0,))
    jobs.run(config, tmp_path)
    by_hand = plan(config, tmp_path, 0)["paper"][-1]
    settings = config_lib.replace(by_hand.config, tta="d4")
    jobs.run(settings, by_hand.folder)
    fake.done.clear()
    jobs.run(config, tmp_path)
    assert fake.done == ["seed0/paper/lung_evaluate"]


def test_a_variant_that_became_equal_takes_what_is_finished(tmp_path, fake):
    config = make_config("a:paper", "b:paper", seeds=(0,))
    config.jobs.a.lung_phase2.optimizer.learning_rate = 0.05
    jobs.run(config, tmp_path)
    config.jobs.a.lung_phase2.optimizer.learning_rate = 0.1
    places = [plan(config, tmp_path, 0)[v][2].folder.parent.name for v in ("a", "b")]
    assert places == ["b", "b"]
    fake.done.clear()
    jobs.run(config, tmp_path)
    assert not fake.done


def test_a_slash_at_the_end_names_the_same_step(tmp_path):
    config = make_config("paper", seeds=(0,))
    config.jobs.paper.lung_evaluate.runs = ("runs/lung_phase2/", "./runs/lung_phase1")
    scoring = plan(config, tmp_path, 0)["paper"][-1]
    own = tmp_path / "seed0" / "paper"
    assert scoring.config.runs == (str(own / "lung_phase2"), str(own / "lung_phase1"))


def test_another_version_looks_at_its_runs_again(tmp_path, fake, monkeypatch):
    config = make_config("paper", seeds=(0,))
    jobs.run(config, tmp_path)
    monkeypatch.setattr(chains, "__version__", "99.0")
    fake.done.clear()
    jobs.run(config, tmp_path)
    assert len(fake.done) == 4
