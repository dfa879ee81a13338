"""Rounds of SC-CAM: clusters of features, training on them, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import sklearn.cluster

from configs import base_sccam
from data import patch_files
from data.dataset import load_dataset
from tests.conftest import COUNTS, SIZE, tiny_sccam
from tests.shallow_network import replace_network
from wsss_jax import clusters, jobs, kmeans, runs, sources
from wsss_jax import config as config_lib
from wsss_jax.checkpoints import load_variables
from wsss_jax.errors import InputError
from wsss_jax.jobs import cluster, train
from wsss_jax.kmeans import KMeans
from wsss_jax.masks import find_white_background
from wsss_jax.methods import sccam
from wsss_jax.training import loop
from wsss_jax.training.trained import load_trained

K = 3


@pytest.fixture(scope="module", autouse=True)
def shallow_network():
    with pytest.MonkeyPatch.context() as patch:
        replace_network(patch)
        yield


def _configure_clusters(run):
    config = base_sccam.cluster("tiny", 1)
    config.run, config.k, config.batch_size, config.data.workers = str(run), K, 8, 0
    config_lib.validate(config)
    return config


def _configure_round1(folder):
    config = tiny_sccam("unused", 1)
    config.clusters = str(folder)
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module")
def first(tissue_dir, tmp_path_factory):
    """The workdir of round 0."""
    workdir = tmp_path_factory.mktemp("sccam") / "round0"
    config = tiny_sccam(tissue_dir)
    config.stop_epoch = 1
    config_lib.validate(config)
    jobs.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def clustered(first):
    """The workdir of its clusters."""
    jobs.run(_configure_clusters(first), first.parent / "clusters")
    return first.parent / "clusters"


@pytest.fixture(scope="module")
def second(clustered):
    """The workdir of round 1, which stopped after the first of two epochs and then went on."""
    workdir = clustered.parent / "round1"
    config = _configure_round1(clustered)
    config.stop_epoch = 1
    jobs.run(config, workdir)
    assert len(json.loads((workdir / "history.json").read_text())) == 1
    jobs.run(_configure_round1(clustered), workdir)
    return workdir


def _read(workdir, names, dataset):
    return clusters.load(workdir, dataset, K, names)


def test_features_and_clusters_are_those_of_the_network_and_scikit_learn(
    first, clustered, tissue_dir
):
    dataset = load_dataset("", tissue_dir)
    trained = load_trained(str(first), "run", "features")
    source = sources.open_source(trained.config.data, dataset, "train")
    config = config_lib.replace(_configure_clusters(first), data=trained.config.data)
    features, labels = cluster.compute_features(config, trained, source)
    images = np.stack([patch["image"] for patch in source])
    x = (images.astype(np.float64) / 255 - trained.config.model.mean) / trained.config.model.std
    apply = jax.jit(lambda x: trained.network.apply(trained.variables, x, train=False)[1]["bn7"])
    expected = np.asarray(apply(x.astype(np.float32)), np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * expected.max())
    np.testing.assert_array_equal(labels, [patch["label"] for patch in source])
    found = _read(clustered, source.names, dataset)
    for index in range(dataset.num_classes):
        rows = np.flatnonzero(labels[:, index])
        direct = sklearn.cluster.KMeans(min(K, len(rows)), n_init=10, max_iter=300, random_state=0)
        np.testing.assert_array_equal(found[rows, index], direct.fit_predict(features[rows]))
        assert (np.delete(found[:, index], rows) == -1).all()


@pytest.mark.parametrize(("k", "classes", "seed"), [(2, 1, 0), (4, 3, 1), (7, 5, 2)])
def test_clusters_of_any_number_of_classes(k, classes, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, 8)).astype(np.float32) * 10 ** rng.uniform(-2, 2, 8)
    features = features.astype(np.float32)  # not normalized: large columns decide
    labels = rng.integers(0, 2, (60, classes))
    done = []
    settings = KMeans(k, seed, starts=3, max_iterations=20)
    found = kmeans.cluster_classes(features, labels, settings, done.append)
    assert done == list(range(classes)) and found.shape == labels.shape
    for index in range(classes):
        rows = labels[:, index] == 1
        direct = sklearn.cluster.KMeans(k, n_init=3, max_iter=20, random_state=seed)
        np.testing.assert_array_equal(found[rows, index], direct.fit_predict(features[rows]))
        assert (found[~rows, index] == -1).all()


def test_separate_groups_are_found():
    features = np.repeat(np.eye(3, dtype=np.float32) * 9, 4, axis=0)
    found = kmeans.cluster_classes(features, np.ones((12, 1)), KMeans(3, 0, 10, 300))[:, 0]
    groups = found.reshape(3, 4)
    assert (groups == groups[:, :1]).all() and len(set(groups[:, 0])) == 3


def test_fewer_patches_than_clusters_and_none(capsys):
    features = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [0, 0]])
    found = kmeans.cluster_classes(features, labels, KMeans(3, 0, 10, 300))
    assert sorted(found[:2, 0]) == [0, 1] and (found[2:] == -1).all() and (found[:, 1] == -1).all()
    cluster._report(found, ("tumor", "stroma"), 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "tumor: 2 clusters (1, 1)",
        "tumor: 2 patches have this class, so it has 2 clusters instead of 3",
        "stroma: 0 clusters (no patches)",
        "stroma: 0 patches have this class, so it has 0 clusters instead of 3",
    ]


@pytest.mark.parametrize(
    ("features", "clusters_found"),
    [
        (np.repeat(np.eye(2, 4), 6, axis=0), 2),  # duplicate patches
        (np.zeros((12, 4)), 1),  # of a network that sees nothing in any of them
        # All differ, but not after the mean is subtracted in float32.
        (np.stack([1e4 * (np.arange(12) % 2), 1e-7 * np.arange(12)], axis=1), 2),
    ],
)
@pytest.mark.filterwarnings("error")
def test_fewer_different_patches_than_clusters(features, clusters_found, capsys):
    features, settings = features.astype(np.float32), KMeans(5, 0, 10, 300)
    found = kmeans.cluster_classes(features, np.ones((12, 1)), settings)
    assert set(found[:, 0]) == set(range(clusters_found))
    differ = {(row.round(3).tobytes(), number) for row, number in zip(features, found[:, 0])}
    assert len(differ) == clusters_found  # those that look the same are together
    cluster._report(found, ("tumor",), 5)
    assert capsys.readouterr().out.splitlines()[1] == (
        "tumor: 12 patches have this class, some of which look the same to the network, so it has "
        f"{clusters_found} clusters instead of 5"
    )


def test_sub_labels_by_hand():
    found = clusters.make_sub_labels(np.array([[1, -1], [0, 2], [-1, -1]]), 3)
    expected = [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_what_a_spreadsheet_would_compute_comes_back(tmp_path, tissue_dir):
    dataset = load_dataset("", tissue_dir)
    names, found = ["=1+1", "-a", "a;b"], np.array([[0, -1, 1, -1], [-1] * 4, [2, 2, 2, 2]])
    clusters.save(found, names, dataset, tmp_path)
    assert (tmp_path / clusters.FILE).read_text().splitlines()[1] == "'=1+1,0,,1,"
    np.testing.assert_array_equal(_read(tmp_path, names, dataset), found)
    np.testing.assert_array_equal(_read(tmp_path, names[::-1], dataset), found[::-1])


@pytest.mark.parametrize(
    ("with_clusters", "words"),
    [
        (True, r"sub_categories is 7, but each class of .*clusters has 3: set .*sub_categories=0"),
        (False, r"sub_categories is 7, but config\.clusters is empty: set .*sub_categories=0"),
    ],
)
def test_another_number_of_clusters_is_refused(
    with_clusters, words, clustered, tissue_dir, tmp_path
):
    config = _configure_round1(clustered) if with_clusters else tiny_sccam(tissue_dir)
    config.model.sub_categories = 7
    config_lib.validate(config)
    with pytest.raises(InputError, match=rf"config\.model\.{words}") as caught:
        jobs.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "config.json").exists()
    if with_clusters:
        config.model.sub_categories = K
        train.complete(config)


def test_batches_have_the_clusters(clustered, tissue_dir, monkeypatch, tmp_path):
    given = []

    def catch(config, workdir, task, patches, validate):
        given.append((config, task, patches.training))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", catch)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(_configure_round1(clustered), tmp_path / "round1")
    ((config, task, source),) = given
    assert config.data.root == str(tissue_dir) and config.model.sub_categories == K
    dataset = load_dataset("", tissue_dir)
    found = _read(clustered, source.names, dataset)
    for index in range(len(source)):
        element = source[index]
        sub_label = element["sub_label"].reshape(dataset.num_classes, K)
        np.testing.assert_array_equal(sub_label.sum(axis=1), element["label"])
        present = np.flatnonzero(element["label"])
        np.testing.assert_array_equal(sub_label[present].argmax(axis=1), found[index, present])
    assert task.network.sub_classes == dataset.num_classes * K


def test_a_round_learns_them_and_goes_on_after_a_stop(second, clustered, tmp_path):
    """To the last bit: a stop is no other schedule."""
    history = json.loads((second / "history.json").read_text())
    assert [figures["epoch"] for figures in history] == [0, 1]
    for figures in history:
        total = figures["class_loss"] + 5 * figures["sub_loss"]
        np.testing.assert_allclose(figures["loss"], total, rtol=1e-5)
    jobs.run(_configure_round1(clustered), tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "history.json").read_text()) == history
    one, other = (load_variables(folder, None) for folder in (second, tmp_path / "whole"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_that_stops_early_is_not_called_unfinished(first, capsys):
    load_trained(str(first), "run", "features")
    assert "epochs so far" not in capsys.readouterr().out


def test_what_is_finished_is_not_done_again(first, clustered, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "clusters"
    shutil.copytree(clustered, workdir)
    calls = []

    def count(*given):
        calls.append(given)
        return compute(*given)

    compute = cluster.compute_features
    monkeypatch.setattr(cluster, "compute_features", count)
    jobs.run(_configure_clusters(first), workdir)
    assert not calls and "are there already" in capsys.readouterr().out
    (workdir / clusters.FILE).unlink()  # as after a start that was killed
    jobs.run(_configure_clusters(first), workdir)
    (workdir / "weights.txt").write_text("trained further since")
    jobs.run(_configure_clusters(first), workdir)
    assert len(calls) == 2
    expected = (clustered / clusters.FILE).read_bytes()
    assert (workdir / clusters.FILE).read_bytes() == expected
    config = _configure_clusters(first)
    config.k = K + 1
    with pytest.raises(InputError, match=r"other settings \(k: 3 / 4\)"):
        jobs.run(config, workdir)


def test_other_patches_and_classes_are_refused_by_name(clustered, tissue_dir, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tissue_dir, root)
    name = sorted((root / "train").glob("*.png"))[0]
    name.write_bytes(sorted((root / "train").glob("*.png"))[1].read_bytes())
    config = _configure_round1(clustered)
    config.data.root = str(root)
    with pytest.raises(InputError, match=rf"config\.clusters: .*{name.stem[:5]}.* has changed"):
        jobs.run(config, tmp_path / "run")
    description = json.loads((root / "dataset.json").read_text())
    description["classes"] = [f"other {each}" for each in description["classes"]]
    (root / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"dataset\.json: classes is .*other"):
        jobs.run(config, tmp_path / "run")


def test_a_run_goes_on_with_its_own_clusters_only(second, clustered, tmp_path):
    workdir, other = tmp_path / "round1", tmp_path / "clusters"
    shutil.copytree(second, workdir)
    shutil.copytree(clustered, other)  # moved, but the same
    jobs.run(_configure_round1(other), workdir)
    header, *rows = (other / clusters.FILE).read_text().splitlines()
    changed = [row.replace(",0", ",1") for row in rows]
    (other / clusters.FILE).write_text("\n".join([header, *changed]) + "\n")
    with pytest.raises(InputError) as caught:
        jobs.run(_configure_round1(other), workdir)
    message = str(caught.value)
    assert message.startswith(f"config.clusters: {other} has other clusters than {workdir} was ")
    assert "name another --workdir" in message and "patches" not in message
    config = _configure_round1(clustered)
    config.clusters, config.data.root = "", config_lib.load(second, "workdir").data.root
    with pytest.raises(InputError, match=r"other settings \(clusters: "):
        jobs.run(config, workdir)


def _remove(path):
    path.unlink()


def _rename_column(path):
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header + "!", *rows]))


def _drop_row(path):
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


def _spoil_number(path):
    path.write_text(path.read_text().replace(",0", ",zero"))


def _count_too_far(path):
    path.write_text(path.read_text().replace(",0", f",{K}"))


def _cut_row(path):
    path.write_text(path.read_text().rstrip("\n").rpartition(",")[0])


def _scramble(path):
    path.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove, r"has no clusters\.csv: its job is not finished, run the job 'cluster' again"),
        (_rename_column, r"damaged \(its columns are not patch and the classes"),
        (_drop_row, rf"damaged \(it has {COUNTS['train'] - 1} of {COUNTS['train']} patches"),
        (_spoil_number, r"clusters\.csv: damaged \(invalid literal"),
        (_count_too_far, r"damaged \(a cluster is not a number of 0 to 2\)"),
        (_cut_row, r"clusters\.csv: damaged "),
        (_scramble, r"clusters\.csv: damaged "),
    ],
)
def test_damaged_clusters_are_refused(damage, words, clustered, tmp_path):
    workdir = tmp_path / "clusters"
    shutil.copytree(clustered, workdir)
    damage(workdir / clusters.FILE)
    with pytest.raises(InputError, match=words):
        jobs.run(_configure_round1(workdir), tmp_path / "run")


def test_runs_of_other_jobs_are_refused(first, clustered, tmp_path):
    with pytest.raises(InputError, match=r"config\.run: .* job 'cluster', not 'sccam'"):
        jobs.run(_configure_clusters(clustered), tmp_path / "clusters")
    with pytest.raises(InputError, match=r"config\.clusters: .* job 'sccam', not 'cluster'"):
        train.complete(_configure_round1(first))
    with pytest.raises(InputError, match=r"config\.clusters: .* holds no run"):
        train.complete(_configure_round1(tmp_path / "none"))


def test_masks_and_scores_of_a_round(second, first, tissue_dir, tmp_path):
    opening = base_sccam.masks("tiny")
    opening.phase1, opening.data.workers, opening.batch_size = str(second), 0, 6
    opening.sheet_patches = 0
    config_lib.validate(opening)
    jobs.run(opening, tmp_path / "masks")
    dataset = load_dataset("", tissue_dir)
    trained = load_trained(str(second), "phase1", "activations")

    @jax.jit
    def score(image):
        maps = sccam.add_maps(trained.config, trained.network, trained.variables, image)
        return sccam.normalize_maps(maps, trained.config.cam)

    for patch in sources.open_source(trained.config.data, dataset, "train"):
        name = sorted((tissue_dir / "train").glob("*.png"))[int(patch["index"])].stem
        mask = patch_files.read_mask(
            runs.layer_dir(tmp_path / "masks", "bn7") / f"{name}.png", dataset, SIZE
        )
        scores = np.array(score(patch["image"][None]))[0]
        scores[patch["label"] == 0] = -1
        white = find_white_background(patch["image"])
        np.testing.assert_array_equal(mask == dataset.excluded, white)
        assert (mask == scores.argmax(axis=0))[~white].mean() > 0.99  # rounding near ties
    scoring = base_sccam.evaluate("tiny")
    scoring.phase1, scoring.phase2, scoring.runs = str(second), "", (str(first),)
    scoring.data.workers, scoring.batch_size, scoring.sheet_patches = 0, 5, 0
    scoring.tta, scoring.crf.iterations = "flips", 1
    config_lib.validate(scoring)
    jobs.run(scoring, tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    rows = [row["name"] for row in scores["rows"]]
    assert rows == ["majority class", "SC-CAM: round0", "SC-CAM: round1"]
