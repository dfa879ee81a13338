"""Training on labeled patches of further folders beside those of a data set (`data.more`)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import base
from data import synthetic
from data.dataset import load_dataset, save_dataset
from data.patch_files import write_image, write_mask
from tests.conftest import COUNTS, SIZE, tiny_phase1
from wsss_jax import config as config_lib
from wsss_jax import jobs, runs, sources
from wsss_jax.errors import InputError


def write_more(root: Path, *names: str, **changes: object) -> str:
    """Writes labeled patches as an export does; returns the folder."""
    (root / "train").mkdir(parents=True)
    rng = np.random.default_rng(9)
    for name in names:
        write_image(root / "train" / f"{name}-[1 0 0 1].png", synthetic.draw_patch(rng, SIZE)[0])
    path = root / "dataset.json"
    save_dataset(synthetic.DATASET, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(root)


def open_training(root: Path, *more: str, **changes: object) -> sources.Source:
    data = base.data(str(root), "", SIZE)
    data.more = more
    data.update(changes)
    return sources.open_source(data, load_dataset("", root), "train")


def test_patches_of_further_folders_are_trained_on(tissue_dir, tmp_path):
    more = [write_more(tmp_path / name, f"{name}_x00000_y00010") for name in "ab"]
    source = open_training(tissue_dir, *more)
    assert len(source) == COUNTS["train"] + 2 and len(source.names) == len(source.records)
    assert source.names[-2:] == ["a_x00000_y00010-[1 0 0 1]", "b_x00000_y00010-[1 0 0 1]"]
    assert source[COUNTS["train"]]["label"].tolist() == [1, 0, 0, 1]
    assert open_training(tissue_dir).names == source.names[:-2]
    data = base.data(str(tissue_dir), "", SIZE)
    data.more = tuple(more)
    validation = sources.open_source(data, load_dataset("", tissue_dir), "val")
    assert len(validation) == COUNTS["val"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": ["a", "b", "c", "d"]}, "classes is .* name folders of the same classes"),
        ({"white": False}, "white is False"),
        ({"label_notation": "commas"}, "label_notation is commas"),
        ({"classes": 3}, "classes"),
    ],
)
def test_folders_of_other_labels_are_refused(tissue_dir, tmp_path, changes, text):
    more = write_more(tmp_path / "more", "a_x00000_y00000", **changes)
    with pytest.raises(InputError, match=text):
        open_training(tissue_dir, more)


def test_another_resolution_is_refused(tissue_dir, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tissue_dir, root)
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mpp": 1.0}))
    more = write_more(tmp_path / "more", "a_x00000_y00000", mpp=0.5)
    with pytest.raises(InputError, match="micrometers per pixel, those of the data set 1:"):
        open_training(root, more)
    assert len(open_training(root, more, resize=True)) == COUNTS["train"] + 1


def test_names_that_are_taken_are_refused(tissue_dir, tmp_path):
    once = write_more(tmp_path / "once", "a_x00000_y00000")
    twice = write_more(tmp_path / "twice", "A_x00000_y00000")
    with pytest.raises(InputError, match=rf"A_x0.*the name of a patch in {once}"):
        open_training(tissue_dir, once, twice)
    path = Path(twice) / "train" / "A_x00000_y00000-[1 0 0 1].png"
    path.rename(path.with_name("a_x00000_y00000-[0 1 0 0].png"))  # a contradiction
    with pytest.raises(InputError, match="but for a label: remove one of the two"):
        open_training(tissue_dir, once, twice)
    with pytest.raises(InputError, match="no such folder nowhere"):
        open_training(tissue_dir, "nowhere")
    with pytest.raises(InputError, match=r"config\.data\.more works with"):
        open_training(tissue_dir, once, source="tfds")


@pytest.mark.parametrize(
    ("held_out", "corrected"),
    [
        ("slide 7_x00100_y00200", "slide 7_x00900_y00000"),
        ("TCGA-AA-1234-01A-1_x00000_y00000", "TCGA-AA-1234-01Z-2_x00000_y00000"),
        ("region TCGA-AA-1234", "tcga-aa-1234-01Z_x00000_y00000"),
    ],
)
@pytest.mark.parametrize("split", ["val", "test", "undrawn/test"])
def test_patients_of_validation_and_test_are_not_trained_on(
    tissue_dir, tmp_path, split, held_out, corrected
):
    root = tmp_path / "data"
    shutil.copytree(tissue_dir, root)
    image, mask = synthetic.draw_patch(np.random.default_rng(0), SIZE)
    for part in ("img", "mask"):
        (root / split / part).mkdir(parents=True, exist_ok=True)
    write_image(root / split / "img" / f"{held_out}.png", image)
    write_mask(root / split / "mask" / f"{held_out}.png", mask, synthetic.DATASET)
    more = write_more(tmp_path / "more", corrected)
    with pytest.raises(InputError, match="is for validation or test: scores would be too good"):
        open_training(root, more)
    assert len(open_training(root, write_more(tmp_path / "other", "slide 70_x00900_y00000")))


def test_later_jobs_learn_of_them_from_the_run_before(tmp_path):
    earlier = base.phase1("luad_histoseg").data
    earlier.more = ("one",)
    data = base.masks("runs/phase1").data
    assert runs.inherit_data(data, earlier).more == ("one",)
    data.more = ("moved",)
    assert runs.inherit_data(data, earlier).more == ("moved",)
    assert base.phase1("luad_histoseg").data.more == ()


def test_a_run_does_not_go_on_with_further_patches_but_a_new_one_begins_with_its_weights(
    tissue_dir, tmp_path
):
    config = tiny_phase1(tissue_dir)
    config.epochs = 1
    jobs.run(config, tmp_path / "before")
    more = write_more(tmp_path / "more", "a_x00000_y00010", "b_x00000_y00010")
    config.data.more = (more,)
    config_lib.validate(config)
    before = tmp_path / "before"
    with pytest.raises(
        InputError, match=rf"a_x0.* is new.*another --workdir, to which --config\.init={before}"
    ):
        jobs.run(config, before)
    config.init = str(before)
    jobs.run(config, tmp_path / "after")
    records = json.loads((tmp_path / "after" / "patches.json").read_text())
    assert len(records) == COUNTS["train"] + 2 + COUNTS["val"]
    masks = base.masks(str(tmp_path / "after"))
    masks.data.workers, masks.batch_size, masks.sheet_patches = 0, 8, 0
    jobs.run(masks, tmp_path / "masks")
    made = {path.name for path in (tmp_path / "masks" / "train_PM" / "PM_bn7").iterdir()}
    assert "a_x00000_y00010-[1 0 0 1].png" in made and len(made) == COUNTS["train"] + 2
