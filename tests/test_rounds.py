"""Further rounds: masks of phase 2's predictions, and training on them."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import base, base_rounds
from data import patch_files
from data.dataset import load_dataset
from tests.conftest import COUNTS, SIZE, tiny_phase2
from wsss_jax import config as config_lib
from wsss_jax import jobs, mask_folders, masks, patch_records, runs, scoring, sources
from wsss_jax.errors import InputError
from wsss_jax.jobs import relabel
from wsss_jax.training import loop
from wsss_jax.training.trained import load_trained

MIN_SHARE = 0.3


def _make_config(runs_dir):
    config = base_rounds.relabel(str(runs_dir / "phase2"))
    config.data.workers, config.batch_size, config.sheet_patches = 0, 8, 2
    config.min_share = MIN_SHARE
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module")
def labeled_once():
    """The network, the same in all tests, is traced once, which takes longer than all the rest."""
    make, made = relabel.make_labeler, []

    def make_once(config, segmenter):
        if not made:
            made.append(make(config, segmenter))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relabel, "make_labeler", make_once)
        yield


@pytest.fixture(scope="module")
def relabeled(labeled_once, runs_dir, tmp_path_factory):
    """The workdir of masks for a second round."""
    workdir = tmp_path_factory.mktemp("rounds") / "relabel"
    jobs.run(_make_config(runs_dir), workdir)
    return workdir


def _list(workdir):
    """The masks that are trained on, and those that are not, by stem."""
    folders = runs.layer_dir(workdir, "phase2"), runs.left_out_dir(workdir)
    return [{path.stem: path for path in folder.glob("*.png")} for folder in folders]


def test_shares_by_hand():
    mask = np.array([[0, 0, 0, 1], [4, 4, 4, 4]], np.uint8)  # of 4 pixels that count, 3 and 1
    both, first, other = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]], np.uint8)
    assert masks.has_all_classes(mask, both, 0.25) and not masks.has_all_classes(mask, both, 0.26)
    assert masks.has_all_classes(mask, first, 0.75) and not masks.has_all_classes(mask, other, 0.01)
    white = np.full((2, 2), 4, np.uint8)
    assert not masks.has_all_classes(white, first, 0.1) and masks.has_all_classes(white, first, 0)


def _average_views(predict, image):
    """The mean probabilities (H, W, C) of the eight symmetries, one after the other."""
    total = 0.0
    for view in range(8):
        turned = np.rot90(image[:, ::-1] if view >= 4 else image, view)
        probabilities = np.asarray(jax.nn.softmax(predict(np.ascontiguousarray(turned)[None])))[0]
        back = np.rot90(probabilities, -view)
        total = total + (back[:, ::-1] if view >= 4 else back)
    return total / 8


def test_masks_are_predictions_that_keep_to_the_labels(relabeled, runs_dir, tissue_dir):
    dataset = load_dataset("", tissue_dir)
    trained = load_trained(str(runs_dir / "phase2"), "phase2", "logits")
    config = trained.config.data
    source = sources.open_source(config_lib.replace(config, source="folder"), dataset, "train")
    predict = jax.jit(trained.predict)
    kept, left_out = _list(relabeled)
    assert kept and left_out and not kept.keys() & left_out.keys()
    assert kept.keys() | left_out.keys() == set(source.names)
    for name, patch in zip(source.names, source):
        mask = patch_files.read_mask((kept | left_out)[name], dataset, SIZE)
        white = masks.find_white_background(patch["image"])
        np.testing.assert_array_equal(mask == dataset.excluded, white)
        present = np.flatnonzero(patch["label"])
        assert set(np.unique(mask[~white])) <= set(present)
        mean = _average_views(lambda x: predict(trained.variables, x).logits, patch["image"])
        expected = present[mean[..., present].argmax(axis=-1)]
        assert (mask == expected)[~white].mean() > 0.99  # the batch rounds otherwise
        shares = [np.mean(mask[~white] == label) for label in present]
        assert (min(shares) >= MIN_SHARE) == (name in kept)
    scores = json.loads((relabeled / "scores.json").read_text())
    assert [row["name"] for row in scores["rows"]] == ["phase2"]
    assert (relabeled / "contact_sheet.png").stat().st_size


def test_only_what_is_missing_is_made_again(relabeled, runs_dir, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "relabel"
    shutil.copytree(relabeled, workdir)
    before = _list(relabeled)
    missing = {stem for masks in before for stem in sorted(masks)[::2]}
    for masks_there in _list(workdir):
        for stem in missing & masks_there.keys():
            masks_there[stem].unlink()
    written = []
    write_mask = patch_files.write_mask

    def count(path, *arguments):
        written.append(path.stem)
        write_mask(path, *arguments)

    monkeypatch.setattr(patch_files, "write_mask", count)
    jobs.run(_make_config(runs_dir), workdir)
    assert set(written) == missing and len(written) == len(missing)
    for now, there in zip(_list(workdir), before):
        assert now.keys() == there.keys()
        assert all(path.read_bytes() == there[stem].read_bytes() for stem, path in now.items())
    printed = capsys.readouterr().out
    assert f"{len(before[0])} of {COUNTS['train']} patches are trained on" in printed

    written.clear()
    stamp = workdir / runs.PSEUDO_MASKS / "classifier.txt"
    stamp.write_text("trained further since")
    jobs.run(_make_config(runs_dir), workdir)
    assert len(written) == COUNTS["train"]
    config = _make_config(runs_dir)
    config.tta = "none"
    with pytest.raises(InputError, match=r"other settings \(tta: 'd4' / 'none'\)"):
        jobs.run(config, workdir)


def test_another_share_sorts_the_masks_again(relabeled, runs_dir, tmp_path, monkeypatch, capsys):
    """Also where that was interrupted, or some masks are still to be made."""
    new = tmp_path / "new"
    shutil.copytree(relabeled, new)
    config, written = _make_config(runs_dir), []
    config.min_share = 0.0  # nothing is left out
    write_mask = patch_files.write_mask

    def count(path, *arguments):
        written.append(path.stem)
        write_mask(path, *arguments)

    monkeypatch.setattr(patch_files, "write_mask", count)
    kept, left_out = _list(new)
    assert kept and left_out
    missing = min(left_out)
    left_out[missing].unlink()
    jobs.run(config, new)
    assert written == [missing]
    all_kept, none = _list(new)
    assert not none and all_kept.keys() == kept.keys() | left_out.keys()
    assert (
        f"{COUNTS['train']} of {COUNTS['train']} patches are trained on" in capsys.readouterr().out
    )
    assert config_lib.load(new, "workdir").min_share == 0.0

    # As after a start that was killed when it had written its settings and sorted nothing.
    config_lib.save(config_lib.replace(config_lib.load(new, "workdir"), min_share=MIN_SHARE), new)
    jobs.run(_make_config(runs_dir), new)
    for now, there in zip(_list(new), _list(relabeled)):
        assert now.keys() == there.keys()
        assert all(path.read_bytes() == there[stem].read_bytes() for stem, path in now.items())


def _make_round2(relabeled, runs_dir):
    config = base_rounds.next_round(tiny_phase2(""), str(relabeled), str(runs_dir / "phase2"))
    config.epochs, config.batch_size = 1, 2
    config_lib.validate(config)
    return config


def test_patches_that_are_left_out_are_not_even_read(
    relabeled, runs_dir, tissue_dir, tmp_path, monkeypatch
):
    kept, left_out = _list(relabeled)
    root = tmp_path / "data"
    shutil.copytree(tissue_dir, root, ignore=shutil.ignore_patterns("arrayrecord"))
    for stem in left_out:
        (root / "train" / f"{stem}.png").write_bytes(b"no picture")
    config, given = _make_round2(relabeled, runs_dir), []
    config.data.root = str(root)

    def catch(config, workdir, task, patches, validate):
        given.append(patches.training)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", catch)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(config, tmp_path / "round2")
    (source,) = given
    assert list(source.names) == [record.name for record in source.records] == sorted(kept)
    dataset = load_dataset("", root)
    for index, name in enumerate(source.names):
        mask = patch_files.read_mask(kept[name], dataset, SIZE)
        np.testing.assert_array_equal(source[index]["masks"][0], mask)


@pytest.mark.long
def test_a_second_round_trains_and_is_scored_beside_the_first(relabeled, runs_dir, tmp_path):
    jobs.run(_make_round2(relabeled, runs_dir), tmp_path / "round2")
    records = patch_records.load(tmp_path / "round2")
    trained_on = [record.name for record in records if not record.name.startswith("val/")]
    assert sorted(trained_on) == sorted(_list(relabeled)[0])
    history = json.loads((tmp_path / "round2" / "history.json").read_text())
    assert np.isfinite(history[0]["loss"]) and history[0]["loss"] == history[0]["loss_phase2"]
    evaluation = base.evaluate(str(runs_dir / "phase1"), str(tmp_path / "round2"))
    evaluation.runs = (str(runs_dir / "phase2"),)
    _, subject = scoring.load_subject(evaluation)
    rows = ["phase 2: phase2", "phase 1", "phase 2: round2", "phase 2: round2 + gate"]
    assert subject.rows == rows


def test_rows_are_named_after_folders(runs_dir, tmp_path):
    again = tmp_path / "round2" / "phase2"
    shutil.copytree(runs_dir / "phase2", again)
    config = base.evaluate(str(runs_dir / "phase1"), str(again))
    config.runs = (str(runs_dir / "phase2"), str(runs_dir / "phase2"), str(again))
    _, subject = scoring.load_subject(config)
    folders = runs_dir.name, f"{tmp_path.name}/round2"  # where the paths differ
    first, second = (f"phase 2: {folder}" for folder in folders)
    assert subject.rows == [first, "phase 1", second, f"{second} + gate"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (
            ["s/seed0/paper/lung_phase2", "s/seed1/tuned/lung_phase2"],
            ["seed0/paper", "seed1/tuned"],
        ),
        (["s/seed0/paper/p2", "s/seed1/paper/p2"], ["seed0", "seed1"]),
        (["s/seed0/a/p2", "s/seed0/b/p2", "s/seed1/a/p2"], ["seed0/a", "seed0/b", "seed1/a"]),
        (["runs/phase2", "runs/round2"], ["phase2", "round2"]),
        # as a variant has them that shares its first round: rows are compared by their names
        (["s/seed0/a/phase2", "s/seed0/b/round2"], ["phase2", "round2"]),
        (["runs", "runs/round2"], ["runs", "round2"]),
        (["a/phase2", "a/b/phase2"], ["a", "a/b"]),
        (["/phase2", "/b/phase2"], ["/", "/b"]),
        (["a/p", "b/p", "c/q"], ["a/p", "b/p", "q"]),
        (["a/p", "./a/p"], ["p", "p"]),
    ],
)
def test_a_run_is_named_by_what_tells_it_from_others(paths, names):
    assert [scoring.name_folder(path, paths) for path in paths] == names


def test_rows_come_in_a_fixed_order(runs_dir, tmp_path):
    """Further runs as they are given, each once, however it is written; phase 1, phase 2, gate."""
    paths = []
    for name in ("b", "a"):
        paths.append(str(tmp_path / name / "phase2"))
        shutil.copytree(runs_dir / "phase2", paths[-1])
    config = base.evaluate(str(runs_dir / "phase1"), str(runs_dir / "phase2"))
    config.runs = (*paths, f"{paths[0]}/", f"{runs_dir}/./phase1")
    _, subject = scoring.load_subject(config)
    last = f"phase 2: {runs_dir.name}"
    further = [f"phase 2: {tmp_path.name}/{name}" for name in ("b", "a")]
    assert subject.rows == [*further, "phase 1", last, f"{last} + gate"]


def test_a_store_leaves_the_same_patches_out(relabeled, runs_dir, tissue_dir):
    dataset = load_dataset("", tissue_dir)
    data = load_trained(str(runs_dir / "phase2"), "phase2", "").config.data
    folders = [runs.layer_dir(relabeled, "phase2")]
    left_out = mask_folders.list_left_out(relabeled)
    files, store = (
        sources.open_source(
            config_lib.replace(data, source=kind), dataset, "train", folders, left_out
        )
        for kind in ("folder", "tfds")
    )
    assert list(files.names) == list(store.names) == sorted(_list(relabeled)[0])
    assert files.records == store.records
    for index in range(len(files)):
        jax.tree.map(np.testing.assert_array_equal, files[index], store[index])
    with pytest.raises(InputError, match="all patches are left out"):
        sources.open_source(data, dataset, "train", folders, [*files.names, *left_out])


def test_layers_that_there_are_not(relabeled, runs_dir, tmp_path):
    config = tiny_phase2(str(relabeled), layers=("bn7",))
    with pytest.raises(
        InputError, match=r"masks of phase2: set --config\.layers=\"\('phase2',\)\""
    ):
        jobs.run(config, tmp_path / "run")
    config = tiny_phase2(str(runs_dir / "masks"), layers=("bn7", "phase2"))
    with pytest.raises(InputError, match=r"names phase2, but .* has masks of b4_3, b5_2, bn7"):
        jobs.run(config, tmp_path / "run")


def test_no_patch_left_is_an_error(labeled_once, runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "has_all_classes", lambda *arguments: False)
    with pytest.raises(InputError, match=r"less than 30% .*: lower --config\.min_share"):
        jobs.run(_make_config(runs_dir), tmp_path / "relabel")


@pytest.mark.parametrize("job", ["masks", "evaluate"])
def test_runs_from_before_averaging_load(tmp_path, job):
    config = {"masks": base.masks("run"), "evaluate": base.evaluate("one", "two")}[job]
    earlier = {k: v for k, v in config.to_dict().items() if k not in ("tta", "scales")}
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert config_lib.differences(config_lib.load(tmp_path, "workdir"), config) == []
