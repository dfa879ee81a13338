import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import base
from data import folders, patch_files
from data.dataset import load_dataset
from tests.conftest import COUNTS, SIZE
from wsss_jax import config as config_lib
from wsss_jax import jobs, masks, runs
from wsss_jax.errors import InputError
from wsss_jax.jobs import masks as masks_job


@pytest.fixture(scope="module")
def opened_once():
    """The network, the same in all tests, is traced once, which takes longer than all the rest.

    Gives what the batches held; other contents would need another program.
    """
    make, made, contents = masks_job.make_opener, [], set()

    def make_once(config, classifier):
        if not made:
            made.append(make(config, classifier))

        def open_batch(batch):
            contents.add(frozenset(batch))
            return made[0](batch)

        return open_batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_job, "make_opener", make_once)
        yield contents


def test_pseudo_masks_keep_to_labels_and_white(runs_dir, tissue_dir):
    dataset = load_dataset("", tissue_dir)
    patches = folders.list_labeled_patches(tissue_dir, "train", dataset)
    assert len(patches) == COUNTS["train"]
    for layer in ("b4_3", "b5_2", "bn7"):
        folder = runs_dir / "masks" / "train_PM" / f"PM_{layer}"
        assert sorted(p.stem for p in folder.iterdir()) == [p.stem for p in patches]
        for patch in patches:
            mask = patch_files.read_mask(folder / f"{patch.stem}.png", dataset, SIZE)
            white = masks.find_white_background(patch_files.read_image(patch.image, SIZE))
            np.testing.assert_array_equal(mask == dataset.excluded, white)
            assert {k for k in np.unique(mask) if k < 4} <= set(np.flatnonzero(patch.label))
    palette = np.reshape(Image.open(folder / f"{patches[0].stem}.png").getpalette()[:15], (5, 3))
    np.testing.assert_array_equal(palette, dataset.palette)
    assert Image.open(runs_dir / "masks" / "contact_sheet.png").width > 4 * SIZE
    scores = json.loads((runs_dir / "masks" / "scores.json").read_text())
    assert [row["name"] for row in scores["rows"]] == ["b4_3", "b5_2", "bn7"]


def test_runs_that_are_not_there(runs_dir, tmp_path):
    config = base.masks(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"config\.phase1: .*nothing holds no run"):
        jobs.run(config, tmp_path / "out")
    config.phase1 = str(runs_dir / "phase2")
    with pytest.raises(InputError, match="is a run of the job 'phase2', not 'phase1'"):
        jobs.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_job_s_folder_is_left_alone(runs_dir):
    config = base.masks(str(runs_dir / "phase1"))
    before = (runs_dir / "phase1" / "config.json").read_bytes()
    with pytest.raises(InputError, match="holds a run of the job 'phase1'"):
        jobs.run(config, runs_dir / "phase1")
    assert (runs_dir / "phase1" / "config.json").read_bytes() == before


def test_masks_of_other_settings_are_not_mixed(runs_dir):
    config = base.masks(str(runs_dir / "phase1"))
    config.data.workers, config.batch_size, config.sheet_patches = 0, 8, 2
    config.white_threshold = 180
    with pytest.raises(InputError, match=r"other settings \(white_threshold: 200 / 180\)"):
        jobs.run(config, runs_dir / "masks")


def test_masks_that_are_there_are_not_made_again(opened_once, runs_dir, tmp_path, monkeypatch):
    whole = runs_dir / "masks" / runs.PSEUDO_MASKS
    workdir = tmp_path / "masks"
    shutil.copytree(runs_dir / "masks", workdir)
    (workdir / "contact_sheet.png").unlink()
    paths = sorted((workdir / runs.PSEUDO_MASKS).rglob("*.png"))
    missing = paths[::5]
    for path in missing:
        path.unlink()
    written = []
    write_mask = patch_files.write_mask

    def count(path, *arguments):
        written.append(path)
        write_mask(path, *arguments)

    monkeypatch.setattr(patch_files, "write_mask", count)
    config = config_lib.load(workdir, "workdir")
    opened_once.clear()
    jobs.run(config, workdir)
    assert len(opened_once) == 1  # patches to be scored too
    assert {path.stem for path in written} == {path.stem for path in missing}
    for path in paths:
        other = whole / path.relative_to(workdir / runs.PSEUDO_MASKS)
        assert path.read_bytes() == other.read_bytes()
    sheet = (runs_dir / "masks" / "contact_sheet.png").read_bytes()
    assert (workdir / "contact_sheet.png").read_bytes() == sheet

    written.clear()
    jobs.run(config, workdir)
    assert not written  # all are there
    (workdir / runs.PSEUDO_MASKS / "classifier.txt").write_text("trained further since")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(masks_job, "make_opener", _interrupt)
        jobs.run(config, workdir)
    # Of no other masks than those that are there.
    assert not [path for path in workdir.iterdir() if path.suffix in (".csv", ".png")]
    assert not (workdir / "scores.json").exists()
    jobs.run(config, workdir)
    assert len(written) == len(paths)


def _interrupt(*_):
    raise KeyboardInterrupt


def _stamp(workdir):
    return workdir / runs.PSEUDO_MASKS / "classifier.txt"


def test_masks_in_linked_folders_are_made_anew(opened_once, runs_dir, tmp_path):
    workdir, elsewhere = tmp_path / "masks", tmp_path / "elsewhere"
    shutil.copytree(runs_dir / "masks", workdir)
    (workdir / runs.PSEUDO_MASKS).rename(elsewhere)
    (workdir / runs.PSEUDO_MASKS).symlink_to(elsewhere)
    (elsewhere / "PM_bn7").rename(tmp_path / "bn7")
    (elsewhere / "PM_bn7").symlink_to(tmp_path / "bn7")
    theirs = tmp_path / "bn7" / "mine.png"
    theirs.write_text("theirs")
    stamp = _stamp(workdir).read_text()
    _stamp(workdir).write_text("of another classifier")
    expected = {}
    for path in sorted(elsewhere.glob("PM_*/train_*.png")):
        expected[path] = path.read_bytes()
        path.write_bytes(b"of another classifier")
    jobs.run(config_lib.load(workdir, "workdir"), workdir)
    assert len(expected) == 3 * COUNTS["train"]
    for path, content in expected.items():
        assert path.read_bytes() == content
    assert theirs.read_text() == "theirs" and _stamp(workdir).read_text() == stamp


def test_a_mask_that_cannot_be_removed_is_told_and_the_stamp_stays(runs_dir, tmp_path):
    workdir = tmp_path / "masks"
    shutil.copytree(runs_dir / "masks", workdir)
    _stamp(workdir).write_text("of another classifier")
    mask = sorted(runs.layer_dir(workdir, "bn7").iterdir())[0]
    mask.unlink()
    mask.mkdir()  # which nothing removes as a file
    with pytest.raises(OSError, match=mask.stem.replace("[", r"\[").replace("]", r"\]")):
        jobs.run(config_lib.load(workdir, "workdir"), workdir)
    assert _stamp(workdir).read_text() == "of another classifier"


def test_masks_of_other_patches_are_made_anew(
    opened_once, runs_dir, tissue_dir, tmp_path, monkeypatch
):
    workdir, root = tmp_path / "masks", tmp_path / "data"
    shutil.copytree(runs_dir / "masks", workdir)
    shutil.copytree(tissue_dir, root)
    first, second, *_ = sorted((root / "train").iterdir())
    second.unlink()
    image = np.asarray(Image.open(first))
    Image.fromarray(image[::-1].copy()).save(first)
    written = []
    write_mask = patch_files.write_mask

    def count(path, *arguments):
        written.append(path)
        write_mask(path, *arguments)

    monkeypatch.setattr(patch_files, "write_mask", count)
    config = config_lib.thaw(config_lib.load(workdir, "workdir"))
    config.data.root = str(root)
    jobs.run(config, workdir)
    assert {path.stem for path in written} == {first.stem} and len(written) == 3
    for layer in config.layers:
        assert not (runs.layer_dir(workdir, layer) / second.name).exists()
