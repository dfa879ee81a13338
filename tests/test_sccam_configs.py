"""Rounds of SC-CAM name each other's runs, by hand and in chains."""

import importlib
from pathlib import Path

import pytest

import main
from configs import sccam_rounds
from wsss_jax import chains
from wsss_jax import config as config_lib

DATASETS = ("luad", "bcss", "lung", "own")


def _workdir(path, argument):
    return str(main._name_workdir(["main.py", f"--config={path}:{argument}"]))


@pytest.mark.parametrize("name", [*DATASETS, "demo"])
def test_each_round_reads_the_workdirs_before_it(name):
    paths = [f"configs/{name}_sccam{end}.py" for end in ("", "_clusters")]
    train, cluster = (importlib.import_module(f"configs.{Path(p).stem}").get_config for p in paths)
    assert train().to_dict() == train("round=0").to_dict() and train().clusters == ""
    assert train().data.root and train("round=1").data.root == ""
    for number in range(1, 5):
        argument = f"round={number}"
        clusters, config = cluster(argument), train(argument)
        assert clusters.run == _workdir(paths[0], f"round={number - 1}")
        assert config.clusters == _workdir(paths[1], argument)
        config_lib.validate(clusters)
        config_lib.validate(config)
    stops = [train(f"round={number}").stop_epoch for number in range(5)]
    assert stops[:3] == sorted(stops[:3]) and 0 not in stops[:3] and stops[3:] == [0, 0]
    assert len({train(f"round={number}").epochs for number in range(4)}) == 1
    for wrong in ("round=x", "round=-1", "round=1.5"):
        with pytest.raises(ValueError, match="whole number"):
            train(wrong)
    with pytest.raises(ValueError, match="round=0 learns no clusters"):
        cluster("round=0")


def test_the_published_settings():
    config = importlib.import_module("configs.bcss_sccam").get_config("round=2")
    assert (config.epochs, config.stop_epoch, config.batch_size) == (61, 50, 16)
    assert (config.sub_weight, config.optimizer.learning_rate) == (5.0, 0.01)
    assert (config.optimizer.momentum, config.optimizer.head_multiplier) == (5e-4, 10.0)
    assert config.cam.scales == (1.0, 0.5, 1.5, 2.0) and config.cam.flip
    assert config.augment.affine == 0 and config.augment.color == 1
    clusters = importlib.import_module("configs.bcss_sccam_clusters").get_config("round=2")
    assert (clusters.k, clusters.starts, clusters.max_iterations, clusters.seed) == (10, 10, 300, 0)


@pytest.mark.parametrize("of", DATASETS)
def test_a_chain_has_all_rounds(of, tmp_path):
    config = sccam_rounds.get_config(f"of={of},beside=tuned")
    config_lib.validate(config)
    planned = chains.plan(config.steps, config.jobs, tmp_path, seed=7)
    assert [len(planned[name]) for name in ("sccam", "tuned")] == [10, 4]
    by_name = {step.name: step for step in planned["sccam"]}
    for number in (1, 2, 3):
        earlier = by_name[f"{of}_sccam_round{number - 1}" if number > 1 else f"{of}_sccam"]
        clusters = by_name[f"{of}_sccam_clusters_round{number}"]
        assert clusters.earlier == (earlier.folder,)
        training = by_name[f"{of}_sccam_round{number}"]
        assert training.earlier == (clusters.folder,) and training.config.seed == 7
    last = by_name[f"{of}_sccam_round3"].folder
    assert by_name[f"{of}_sccam_masks"].earlier == (last,)
    assert last in by_name[f"{of}_sccam_evaluate"].earlier
    for wrong in ("of=none", "beside=none"):
        with pytest.raises(ValueError, match="is not one of"):
            sccam_rounds.get_config(wrong)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("", "runs/luad_sccam"),
        ("round=0", "runs/luad_sccam"),
        ("round=12", "runs/luad_sccam_round12"),
        ("variant=paper,round=1", "runs/luad_sccam_round1"),
        ("around=1", "runs/luad_sccam"),
    ],
)
def test_default_workdirs(argument, expected):
    assert _workdir("configs/luad_sccam.py", argument) == expected
