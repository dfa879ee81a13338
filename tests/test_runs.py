import json
import shutil

import pytest

from configs import base, base_slides, base_tools
from data.synthetic import DATASET
from tests.conftest import tiny_phase1
from wsss_jax import files, jobs, patch_records, runs
from wsss_jax.errors import InputError
from wsss_jax.patch_records import PatchRecord


def test_save_and_load(tmp_path):
    config = base.masks("runs/phase1")
    runs.save(config, DATASET, tmp_path / "run")
    again, dataset = runs.load(tmp_path / "run", "masks", "masks")
    assert again.to_dict() == config.to_dict() and dataset == DATASET
    with pytest.raises(InputError, match="is a run of the job 'masks', not 'phase1'"):
        runs.load(tmp_path / "run", "phase1", "phase1")


def test_a_damaged_run_is_named(tmp_path):
    runs.save(base.masks("runs/phase1"), DATASET, tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    path.write_text(text[:40])
    with pytest.raises(InputError, match=r"config.json: not JSON"):
        runs.load(tmp_path, "masks", "masks")
    fields = json.loads(text)
    del fields["layers"]
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"config.json: layers is missing"):
        runs.load(tmp_path, "masks", "masks")


def test_inherit_data():
    earlier = base.phase1("luad_histoseg").data
    data = base.masks("runs/phase1").data
    data.root = "elsewhere"
    inherited = runs.inherit_data(data, earlier)
    whole = (inherited.root, inherited.dataset, inherited.patch_size)
    assert whole == ("elsewhere", "luad_histoseg", 224)
    assert data.dataset == ""  # the one that was given stays as it was


def test_what_may_change(tmp_path):
    config = base.phase1("luad_histoseg")
    runs.check(config, tmp_path, started=True)
    runs.save(config, DATASET, tmp_path)
    config.log_every, config.data.workers = 77, 5
    runs.check(config, tmp_path, started=True)
    config.seed = 7
    runs.check(config, tmp_path, started=False)
    with pytest.raises(InputError, match=r"other settings \(seed: 0 / 7\)"):
        runs.check(config, tmp_path, started=True)
    with pytest.raises(InputError, match="of the job 'phase1', this one is 'masks'"):
        runs.check(base.masks("x"), tmp_path, started=False)


def test_the_file_of_initial_weights_may_be_moved_but_not_left_out(tmp_path):
    config = base.phase2("m")
    config.init = "weights.pth"
    runs.save(config, DATASET, tmp_path)
    config.init = "elsewhere/weights.pth"
    runs.check(config, tmp_path, started=True)
    config.init = ""
    with pytest.raises(InputError, match=r"other settings \(init: 'weights.pth' / ''\)"):
        runs.check(config, tmp_path, started=True)


def test_another_setting_is_no_continuation(runs_dir, tissue_dir):
    config = tiny_phase1(tissue_dir)
    config.epochs, config.seed = 1, 7
    with pytest.raises(InputError, match=r"other settings \(seed: 0 / 7\)"):
        jobs.run(config, runs_dir / "phase1")


CONFIG = base.phase2("runs/masks")
RECORDS = [PatchRecord("a", "1 0", "00000001"), PatchRecord("b", "0 1", "00000002")]


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (RECORDS[:1], "b is gone"),
        ([*RECORDS, PatchRecord("c", "1 1", "00000003")], "c is new"),
        ([RECORDS[0]._replace(label="1 1"), RECORDS[1]], "the label of a was 1 0 and is 1 1"),
        ([RECORDS[0], RECORDS[1]._replace(checksum="00000003")], "the content of b has changed"),
    ],
)
def test_a_run_goes_on_with_its_own_patches_only(tmp_path, now, difference):
    patch_records.save(RECORDS, tmp_path)
    runs.check_patches(CONFIG, RECORDS, tmp_path, started=True)
    runs.check_patches(CONFIG, now, tmp_path, started=False)
    with pytest.raises(InputError) as caught:
        runs.check_patches(CONFIG, now, tmp_path, started=True)
    assert f"other patches than there are now ({difference}): restore" in str(caught.value)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        # Own files have the first eight digits, what is learned of them has the others.
        ({"b": "00000002" + "33333333"}, r"config\.masks: runs/masks has other masks than .*of b "),
        ({"b": "00000003" + "22222222"}, r"other patches .*the content of b has changed"),
        (
            {"a": "00000001" + "33333333", "b": "00000003" + "22222222"},
            "other patches .*the content of a has changed",
        ),
    ],
)
def test_other_masks_are_not_called_other_patches(tmp_path, now, words):
    before = [PatchRecord(name, "", f"0000000{i}22222222") for i, name in enumerate("ab", 1)]
    patch_records.save(before, tmp_path)
    runs.check_patches(CONFIG, before, tmp_path, started=True)
    records = [each._replace(checksum=now.get(each.name, each.checksum)) for each in before]
    with pytest.raises(InputError, match=words):
        runs.check_patches(CONFIG, records, tmp_path, started=True)
    runs.check_patches(CONFIG, records, tmp_path, started=False)


def test_a_run_without_records_goes_on_and_says_so(tmp_path, capsys):
    runs.check_patches(CONFIG, RECORDS, tmp_path, started=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert "they are not compared" in line
    (tmp_path / patch_records.FILE).write_text("[1]")
    with pytest.raises(InputError, match=r"patches\.json: damaged"):
        runs.check_patches(CONFIG, RECORDS, tmp_path, started=True)


def test_other_patches_are_no_continuation(runs_dir, tissue_dir, tmp_path, capsys):
    config = tiny_phase1(tmp_path / "data")
    config.epochs, config.model.batch_norm = 1, "auto"
    shutil.copytree(tissue_dir / "train", tmp_path / "data" / "train")
    shutil.copytree(tissue_dir / "val", tmp_path / "data" / "val")
    shutil.copy(tissue_dir / "dataset.json", tmp_path / "data")
    path = sorted((tmp_path / "data" / "train").iterdir())[4]
    path.write_bytes(path.read_bytes() + b"!")
    before = (runs_dir / "phase1" / "patches.json").read_bytes()
    with pytest.raises(InputError) as caught:
        jobs.run(config, runs_dir / "phase1")
    assert f"(the content of {path.stem} has changed): restore" in str(caught.value)
    assert (runs_dir / "phase1" / "patches.json").read_bytes() == before
    path.write_bytes(path.read_bytes()[:-1])
    mask = sorted((tmp_path / "data/val/mask").iterdir())[0]  # it chooses the checkpoint
    mask.write_bytes(mask.read_bytes() + b"!")
    with pytest.raises(InputError, match=rf"the content of val/{mask.stem} has changed"):
        jobs.run(config, runs_dir / "phase1")
    mask.write_bytes(mask.read_bytes()[:-1])
    description = tmp_path / "data/dataset.json"
    fields = json.loads(description.read_text())
    for field, value in (("classes", fields["classes"][::-1]), ("white", not fields["white"])):
        description.write_text(json.dumps({**fields, "roles": {}, field: value}))
        with pytest.raises(InputError, match=rf"was trained with {field} .* set it as it was"):
            jobs.run(config, runs_dir / "phase1")
    description.write_text(json.dumps(fields))
    jobs.run(config, runs_dir / "phase1")  # the same patches, in another folder
    assert "they are not compared" not in capsys.readouterr().out
    (runs_dir / "phase1" / "patches.json").unlink()  # as in a run of version 0.1
    jobs.run(config, runs_dir / "phase1")
    assert "they are not compared" in capsys.readouterr().out
    assert (runs_dir / "phase1" / "patches.json").read_bytes() == before


CONFIGS = {
    "phase1": base.phase1(""),
    "masks": base.masks("no run"),
    "phase2": base.phase2("no run"),
    "evaluate": base.evaluate("no run", "no run"),
    "segment": base_slides.segment("no slide", "", "no run"),
    "demo": base.demo(32, 1, 1, 1),
    "convert": base_tools.convert(""),
    "export": base_tools.export("no run"),
    "compare": base_tools.compare(),
}


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("job", CONFIGS)
def test_a_folder_of_other_files_is_refused(job, tmp_path):
    theirs = tmp_path / "theirs"
    for name in ("predictions", "train_PM", "checkpoints/3", "data"):
        (theirs / name).mkdir(parents=True)
        (theirs / name / "work of years.png").write_text("theirs")
    before = _files(theirs)
    with pytest.raises(InputError, match=r"theirs holds no run .* such as checkpoints: name"):
        jobs.run(CONFIGS[job].copy_and_resolve_references(), theirs)
    assert _files(theirs) == before


@pytest.mark.parametrize("job", CONFIGS)
def test_a_folder_in_which_another_process_works_is_refused(job, tmp_path):
    runs.save(CONFIGS[job], DATASET, tmp_path)
    before = _files(tmp_path)
    with (
        files.hold_lock(tmp_path / files.LOCK),
        pytest.raises(InputError, match="another process works in"),
    ):
        jobs.run(CONFIGS[job].copy_and_resolve_references(), tmp_path)
    assert _files(tmp_path) == before


def test_what_killed_array_jobs_left_goes_when_nobody_shares_the_folder(tmp_path):
    left = tmp_path / "pictures" / f"{files.UNFINISHED}x"
    left.mkdir(parents=True)

    def segment():
        with pytest.raises(InputError, match="no slide"):
            jobs.run(CONFIGS["segment"].copy_and_resolve_references(), tmp_path)

    with files.hold_lock(tmp_path / files.LOCK, shared=True):
        segment()
        assert left.is_dir()
    segment()
    assert not left.exists()


def test_array_jobs_share_a_folder(tmp_path):
    with (
        files.hold_lock(tmp_path / files.LOCK, shared=True),
        pytest.raises(InputError, match="no slide"),
    ):
        jobs.run(CONFIGS["segment"].copy_and_resolve_references(), tmp_path)


def test_hidden_files_and_what_was_left_do_not_matter(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / files.LOCK).touch()
    (tmp_path / f"{files.UNFINISHED}config.json.x").mkdir()
    with pytest.raises(InputError, match=r"config\.phase1: no run holds no run"):
        jobs.run(CONFIGS["masks"].copy_and_resolve_references(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".DS_Store"]
    with pytest.raises(InputError, match="no run holds no run"):
        jobs.run(CONFIGS["masks"].copy_and_resolve_references(), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_the_configuration_is_written_first(tmp_path, monkeypatch):
    """By it a folder is known as ours, so nothing may be in one whose start was killed before."""

    def killed(dataset, path):
        assert (tmp_path / "config.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save_dataset", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.save(CONFIGS["masks"], DATASET, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
