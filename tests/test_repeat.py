"""Seeds and variants: what a failure costs, and the table."""

import csv
import json

import jax
import ml_collections
import numpy as np
import pytest

from configs import base, base_tools
from configs import repeat as repeat_config
from tests.conftest import COUNTS, tiny_phase1
from tests.fake_jobs import NAMES, STEPS, Fake, make_config
from wsss_jax import chains, jobs, patch_confusions, statistics
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError, Preempted


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(jobs, "run", fake.run)
    return fake


def test_scores_on_other_masks_are_left_out(tmp_path, fake):
    """True masks that were corrected in between: the same patches, another truth."""
    config = make_config("paper", seeds=(0, 1))
    jobs.run(config, tmp_path)
    folder = tmp_path / "seed1" / "paper" / "lung_evaluate"
    confusions = patch_confusions.load(folder)
    changed = confusions.counts.copy()
    changed[:, 4, 0, 0] += 1
    patch_confusions.save(confusions._replace(counts=changed), folder)
    with pytest.raises(InputError, match=rf"another true mask of {NAMES[4]} .* \(remove "):
        jobs.run(config, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["rows"][0]["seeds"] == [0]
    (folder / patch_confusions.FILE).unlink()
    with pytest.raises(InputError, match=r"confusions\.npz is missing: .*finished\.json to eval"):
        jobs.run(config, tmp_path)
    chains.record_path(folder).unlink()
    jobs.run(config, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["rows"][0]["seeds"] == [0, 1]


def test_a_bad_seed_costs_itself(tmp_path, fake, capsys):
    config = make_config("paper", "slow:paper", seeds=(0, 1, 2))
    config.jobs.slow.lung_phase2.optimizer.learning_rate = 0.05
    fake.fails = {"seed1/paper/lung_masks": InputError("the loss is not finite")}
    with pytest.raises(InputError, match=r"2 of 6 chains failed: seed 1, paper, lung_masks: the l"):
        jobs.run(config, tmp_path)
    assert fake.done.count("seed1/paper/lung_masks") == 1  # though both variants need it
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["missing"] == [
        {"variant": variant, "seed": 1, "step": "lung_masks", "problem": "the loss is not finite"}
        for variant in ("paper", "slow")
    ]
    assert {tuple(row["seeds"]) for row in document["rows"]} == {(0, 2), (0,), (2,)}
    assert "paper, seed 1: lung_masks failed: the loss is not finite" in capsys.readouterr().out

    fake.fails = {}
    jobs.run(config, tmp_path)
    document = json.loads((tmp_path / "scores.json").read_text())
    assert not document["missing"] and document["rows"][0]["seeds"] == [0, 1, 2]


def test_scores_of_what_is_finished_are_there_before_the_end(tmp_path, fake):
    fake.fails["seed1/paper/lung_masks"] = Preempted("stopped by SIGTERM")
    with pytest.raises(Preempted):
        jobs.run(make_config("paper"), tmp_path)
    document = json.loads((tmp_path / "scores.json").read_text())
    assert {tuple(row["seeds"]) for row in document["rows"]} == {(0,)}
    (missing,) = document["missing"]
    assert (missing["seed"], missing["problem"]) == (1, "not finished yet")
    text = "not in the table: paper, seed 1: not finished yet"
    assert text in (tmp_path / "scores.txt").read_text()


def test_a_signal_and_a_full_disk_end_all(tmp_path, fake):
    config = make_config("paper")
    for error in (Preempted("stopped"), OSError(28, "No space left on device", "a")):
        fake.fails = {"seed0/paper/lung_phase2": error}
        with pytest.raises(type(error)):
            jobs.run(config, tmp_path)
        assert fake.done[-1] == "seed0/paper/lung_phase2"
    fake.fails = {"seed0/paper/lung_phase2": OSError(5, "Input/output error", "a.png")}
    with pytest.raises(InputError, match=r"1 of 2 chains failed: .*a\.png: Input/output error"):
        jobs.run(config, tmp_path)
    fake.fails, fake.done = {}, []
    jobs.run(config, tmp_path)
    assert fake.done == ["seed0/paper/lung_phase2", "seed0/paper/lung_evaluate"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes")],
)
def test_a_lack_of_memory_costs_its_own_seed(tmp_path, fake, error, capsys):
    fake.fails = {"seed0/paper/lung_phase2": error}
    words = (
        r"1 of 2 chains failed: seed 0, paper, lung_phase2: memory was short \(.*\): "
        r"lower --config\.jobs\.paper\.lung_phase2\.batch_size or switch on "
        r"--config\.jobs\.paper\.lung_phase2\.rematerialize$"
    )
    with pytest.raises(InputError, match=words):
        jobs.run(make_config("paper"), tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["rows"][0]["seeds"] == [1]
    assert "seed 0, paper: lung_phase2 FAILED: memory was short" in capsys.readouterr().out
    fake.fails = {"seed0/paper/lung_phase2": jax.errors.JaxRuntimeError("INTERNAL: a bug")}
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        jobs.run(make_config("paper"), tmp_path)


def test_a_pattern_that_fits_no_patch_is_reported(tmp_path, fake, capsys):
    notice = f"config.bootstrap.region fits the name of no patch (such as {NAMES[0]}), so"
    config = make_config("paper", "slow:paper", seeds=(0,))
    config.jobs.slow.lung_phase2.optimizer.learning_rate = 0.05
    for region, expected in (("(TCGA-.*)", 1), ("", 0), (r"(r2)_x.*", 0)):
        config.bootstrap.region = region
        jobs.run(config, tmp_path)
        assert capsys.readouterr().out.count(notice) == expected
    config.bootstrap.region, config.variants = "(TCGA-.*)", ("paper",)
    del config.jobs["slow"]  # without a comparison there are no intervals
    jobs.run(config, tmp_path)
    assert notice not in capsys.readouterr().out


def test_the_table_says_mean_deviation_and_difference(tmp_path, fake, capsys):
    config = make_config("paper", "slow:paper")
    config.jobs.slow.lung_phase2.optimizer.learning_rate = 0.05  # of 0.1
    jobs.run(config, tmp_path)
    counts = {
        variant: [
            patch_confusions.load(tmp_path / f"seed{seed}" / variant / "lung_evaluate").counts[1]
            for seed in (0, 1)
        ]
        for variant in ("paper", "slow")
    }
    acc = {
        variant: [np.trace(each.sum(axis=0)[:, :4]) / each.sum() for each in of_seeds]
        for variant, of_seeds in counts.items()
    }
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["meta"]["resampled"] == "3 regions" and document["meta"]["patches"] == 9
    rows = {
        (row["variant"], row["baseline"], row["statistic"], *row["seeds"]): row["acc"]
        for row in document["rows"]
        if row["row"] == "phase 2"
    }
    for variant in ("paper", "slow"):
        assert rows[variant, "", "mean", 0, 1] == pytest.approx(np.mean(acc[variant]))
        assert rows[variant, "", "sd", 0, 1] == pytest.approx(np.std(acc[variant], ddof=1))
        for seed in (0, 1):
            assert rows[variant, "", "seed", seed] == pytest.approx(acc[variant][seed])
    of_seeds = np.subtract(acc["slow"], acc["paper"])
    compared = {
        statistic: rows["slow", "paper", statistic, 0, 1]
        for statistic in ("difference", "low", "high", "sd")
    }
    assert compared["difference"] == pytest.approx(of_seeds.mean())
    assert compared["sd"] == pytest.approx(np.std(of_seeds, ddof=1))
    assert compared["low"] < compared["difference"] < compared["high"] < 0
    with (tmp_path / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(document["rows"]) == 2 * 2 * 4 + 2 * 4
    for line, row in zip(lines, document["rows"], strict=True):
        assert float(line["ACC"]) == row["acc"] and line["seeds"] == " ".join(
            map(str, row["seeds"])
        )
    text = (tmp_path / "scores.txt").read_text()
    assert text in capsys.readouterr().out
    assert (
        "slow - paper [seeds of both], with the bootstrap interval of 95 % over 3 regions" in text
    )
    assert (tmp_path / "seeds.png").stat().st_size > 1000


def test_variants_on_other_patches_are_not_compared(tmp_path, fake):
    config = make_config("paper", "slow:paper", seeds=(0,))
    config.jobs.slow.lung_evaluate.split = "val"
    jobs.run(config, tmp_path)
    folder = tmp_path / "seed0" / "slow" / "lung_evaluate"
    confusions = patch_confusions.load(folder)
    patch_confusions.save(confusions._replace(names=confusions.names[::-1]), folder)
    with pytest.raises(InputError, match=r"slow/lung_evaluate scored other patches .* the same sp"):
        jobs.run(config, tmp_path)


@pytest.mark.long
def test_real_runs(tissue_dir, runs_dir, tmp_path):
    """What the jobs do by themselves, with two seeds; the first is that of `runs_dir`."""
    first = tiny_phase1(tissue_dir)
    first.epochs, first.model.batch_norm = 1, "auto"
    scoring = base.evaluate("runs/phase1", "")
    scoring.data.workers, scoring.batch_size, scoring.sheet_patches = 0, 4, 0
    chain = {"phase1": first, "evaluate": scoring}
    config = base.repeat(("phase1", "evaluate"), {"paper": chain})
    config.seeds = (0, 1)
    config_lib.validate(config)
    jobs.run(config, tmp_path / "run")
    document = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert document["meta"]["resampled"] == f"{COUNTS['test']} patches"
    of_seeds = []
    for seed in (0, 1):
        folder = tmp_path / "run" / f"seed{seed}" / "paper"
        assert config_lib.load(folder / "phase1", "phase1").seed == seed
        of_seeds.append(json.loads((folder / "evaluate" / "scores.json").read_text())["rows"][-1])
    by_statistic = {(row["statistic"], *row["seeds"]): row for row in document["rows"]}
    for name in ("iou", *statistics.SUMMARY):
        for seed in (0, 1):
            assert by_statistic["seed", seed][name] == of_seeds[seed][name]
    assert of_seeds[0] != of_seeds[1]
    by_itself = json.loads((runs_dir / "evaluate" / "scores.json").read_text())["rows"]
    assert of_seeds[0] == next(row for row in by_itself if row["name"] == "phase 1")


def test_an_evaluation_keeps_the_counts_of_each_patch(runs_dir, tmp_path):
    confusions = patch_confusions.load(runs_dir / "evaluate")
    scores = json.loads((runs_dir / "evaluate" / "scores.json").read_text())
    assert confusions.rows == ("phase 1", "phase 2", "phase 2 + gate")
    assert confusions.names == tuple(f"test_{number:05d}" for number in range(COUNTS["test"]))
    for counts, row in zip(confusions.counts, scores["rows"][1:], strict=True):
        assert statistics.score(counts.sum(axis=0))[-2] == row["acc"]
    with pytest.raises(InputError, match=r"confusions\.npz is missing: run that evaluation again"):
        patch_confusions.load(tmp_path)
    whole = (runs_dir / "evaluate" / patch_confusions.FILE).read_bytes()
    for damaged in (b"", b"PK", whole[:200], whole.replace(b"rows", b"r0ws")):
        (tmp_path / patch_confusions.FILE).write_bytes(damaged)
        with pytest.raises(InputError, match=r"confusions\.npz: damaged"):
            patch_confusions.load(tmp_path)


def _break(config: ml_collections.ConfigDict, how: str) -> None:
    paper = config.jobs.paper
    with config.unlocked():
        match how:
            case "order":
                config.steps = ("lung_masks", *(s for s in STEPS if s != "lung_masks"))
            case "end":
                config.steps = (*STEPS[:2], "lung_evaluate", "lung_phase2")
                paper.lung_evaluate.phase2 = ""
            case "unfit":
                paper.lung_masks = base_tools.prepare("i", "m", "o", "bcss_wsss")
            case "unknown":
                paper.lung_round2 = paper.lung_phase2
            case "twice":
                config.seeds = (0, 1, 0)
            case "none":
                config.variants = ("paper", "tuned")
            case "region":
                config.bootstrap.region = "no group"
            case "section":
                del paper.lung_masks
                paper.lung_masks = 3
            case "field":
                paper.lung_masks.batchsize = 3
            case "empty":
                config.jobs = {}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "order",
            r"jobs\.paper\.lung_masks reads runs/lung_phase1, but no step lung_phase1 is",
        ),
        ("end", r"config\.jobs\.paper: the last step must be an evaluation"),
        ("unfit", r"jobs\.paper\.lung_masks: the job 'prepare' cannot be repeated: run it before"),
        ("unknown", r"jobs\.paper\.lung_round2 is none of the steps lung_phase1, lung_masks"),
        ("twice", r"config\.seeds is \(0, 1, 0\): give at least one, none twice"),
        ("none", r"config\.jobs must hold the variants paper, tuned"),
        ("region", r"config\.bootstrap\.region is 'no group': it must be a regular expression"),
        ("section", r"config\.jobs\.paper\.lung_masks must hold the fields of that job"),
        ("field", r"config\.jobs\.paper\.lung_masks\.batchsize: the job 'masks' has no such field"),
        ("empty", r"config\.jobs must hold the variants paper"),
    ],
)
def test_what_is_no_chain_is_refused(how, words):
    config = make_config("paper")
    config_lib.validate(config)
    _break(config, how)
    with pytest.raises(InputError, match=words):
        config_lib.validate(config)


def test_chains_of_the_command_line():
    config = repeat_config.get_config("of=luad,variants=paper+reference+mine:reference")
    assert config.steps == ("luad_phase1", "luad_masks", "luad_phase2", "luad_evaluate")
    assert config.variants == ("paper", "reference", "mine")
    assert config.jobs.mine.luad_phase1.pda.decay == config.jobs.reference.luad_phase1.pda.decay
    config = repeat_config.get_config("of=lung_phase2+lung_evaluate")
    assert config.steps == ("lung_phase2", "lung_evaluate") and config.variants == ("paper",)
    config_lib.validate(config)  # the masks are those of an earlier run
    for argument, words in (
        ("of=lungs", "there is no configs/lungs_phase1.py"),
        ("of=base", "there is no configs/base.py"),
        ("of=demo", "configs/demo.py has no variants and cannot be repeated"),
        ("of=lung_prepare+lung_evaluate", "configs/lung_prepare.py has no variants"),
        ("of=export", "configs/export.py has no variants"),
        ("variants=paper+paper", "each variant a name of its own"),
        ("variants=a/b:paper", "each variant a name of its own"),
        ("variants=papre", "variant=papre is not one of"),
    ):
        with pytest.raises(ValueError, match=words):
            repeat_config.get_config(argument)
