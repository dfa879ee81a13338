"""data/patches_tfds.py: the store holds what the folder holds."""

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data import folders, patch_files, patches_tfds, synthetic
from data.dataset import derive_label, load_dataset
from wsss_jax.errors import InputError
from wsss_jax.files import hold_lock

SIZE = 32


@pytest.fixture
def root(tmp_path):
    synthetic.write_dataset(tmp_path / "tissue", {"train": 5, "val": 3}, SIZE, seed=4)
    return tmp_path / "tissue"


def test_the_store_holds_the_folder_in_its_order(root):
    dataset, store = load_dataset("", root), root / "arrayrecord"
    patches_tfds.build(root, dataset, SIZE, store)
    train = patches_tfds.open_split(store, "train")
    patches = folders.list_labeled_patches(root, "train", dataset)
    assert len(train) == 5 and train.names == [patch.stem for patch in patches]
    for index, patch in enumerate(patches):
        record = train[index]
        np.testing.assert_array_equal(record["image"], patch_files.read_image(patch.image, SIZE))
        assert record["label"].dtype == np.uint8 and tuple(record["label"]) == patch.label
        assert record["mask"].size == 0 and record["name"] == patch.stem

    val = pickle.loads(pickle.dumps(patches_tfds.open_split(store, "val")))
    for index, patch in enumerate(folders.list_annotated_patches(root, "val", dataset)):
        record = val[index]
        mask = patch_files.read_mask(patch.mask, dataset, SIZE)
        np.testing.assert_array_equal(record["mask"], mask)
        np.testing.assert_array_equal(record["label"], derive_label(mask, dataset))
        assert record["name"] == val.names[index] == patch.stem
    with pytest.raises(InputError, match="no test split but train, val"):
        patches_tfds.open_split(store, "test")


def test_processes_that_come_at_once_make_one_store(root, monkeypatch):
    """One makes it; the other says that it waits, and finds it there."""
    dataset, store, made = load_dataset("", root), root / "arrayrecord", []
    prepare = patches_tfds.Patches.download_and_prepare
    begun, waiting = threading.Event(), threading.Event()

    def make(builder):
        begun.set()
        waiting.wait(20)
        made.append(builder)
        prepare(builder)

    monkeypatch.setattr(patches_tfds.Patches, "download_and_prepare", make)
    monkeypatch.setattr(patches_tfds, "print", lambda *_, **__: waiting.set(), raising=False)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(patches_tfds.build, root, dataset, SIZE, store)
        assert begun.wait(60)
        second = pool.submit(patches_tfds.build, root, dataset, SIZE, store)
        for each in (first, second):
            each.result()
    assert len(made) == 1 and len(patches_tfds.open_split(store, "train")) == 5
    assert waiting.is_set()
    assert not list(root.glob(".arrayrecord*"))


def test_a_finished_store_needs_no_lock(root):
    """As on a data set that others may only read."""
    dataset, store = load_dataset("", root), root / "arrayrecord"
    patches_tfds.build(root, dataset, SIZE, store)
    with hold_lock(root / ".arrayrecord.lock"):
        patches_tfds.build(root, dataset, SIZE, store)


def test_a_finished_store_is_kept_and_another_refused(root, monkeypatch):
    dataset, store = load_dataset("", root), root / "arrayrecord"
    patches_tfds.build(root, dataset, SIZE, store)
    with monkeypatch.context() as patched:
        patched.setattr(patches_tfds.Patches, "download_and_prepare", lambda _: 1 / 0)
        patches_tfds.build(root, dataset, SIZE, store)
    with pytest.raises(InputError, match="was made with size 32, not 64; remove it"):
        patches_tfds.build(root, dataset, 64, store)
    mask = folders.list_annotated_patches(root, "val", dataset)[0].mask
    patch_files.write_mask(mask, np.zeros((SIZE, SIZE), np.uint8), dataset)
    with pytest.raises(InputError, match="was made from other files than the data set has now"):
        patches_tfds.build(root, dataset, SIZE, store)


def test_changed_contents_of_the_same_size_are_noticed(root):
    dataset, store = load_dataset("", root), root / "arrayrecord"
    patches_tfds.build(root, dataset, SIZE, store)
    path = folders.list_labeled_patches(root, "train", dataset)[2].image
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(InputError, match=r"the content of train_00002.* has changed\); remove it"):
        patches_tfds.build(root, dataset, SIZE, store)
    path.write_bytes(content)
    patches_tfds.build(root, dataset, SIZE, store)


def test_a_store_of_version_0_1_gets_its_records(root):
    """It listed the names only."""
    dataset, store = load_dataset("", root), root / "arrayrecord"
    patches_tfds.build(root, dataset, SIZE, store)
    path = store / patches_tfds.CONTENT
    written = json.loads(path.read_text())
    names = {
        split: [fields[0] for fields in of_split] for split, of_split in written["records"].items()
    }
    path.write_text(json.dumps({"content": written["content"], "names": names}))
    patches_tfds.build(root, dataset, SIZE, store)
    assert json.loads(path.read_text()) == written
    assert patches_tfds.open_split(store, "val").names == names["val"]
    assert [p.name for p in store.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("text", ["", "[]", '{"content": 1}', '{"records": {"train": [["a"]]}}'])
def test_a_damaged_store_is_named(tmp_path, text):
    (tmp_path / patches_tfds.CONTENT).write_text(text)
    with pytest.raises(InputError, match=r"content\.json: damaged .*it will be built again"):
        patches_tfds.open_split(tmp_path, "train")


def test_a_bad_file_leaves_no_store(root):
    dataset = load_dataset("", root)
    patch = folders.list_labeled_patches(root, "train", dataset)[0]
    patch.image.write_bytes(patch.image.read_bytes()[:100])
    before = sorted(root.iterdir())
    with pytest.raises(InputError, match="damaged, or not a"):
        patches_tfds.build(root, dataset, SIZE, root / "arrayrecord")
    assert sorted(root.iterdir()) == before


def test_an_interrupted_build_leaves_no_store(root, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    before = sorted(root.iterdir())
    monkeypatch.setattr(patches_tfds, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patches_tfds.build(root, load_dataset("", root), SIZE, root / "arrayrecord")
    assert sorted(root.iterdir()) == before


def test_no_store_and_no_folder(tmp_path):
    with pytest.raises(InputError, match="no finished ArrayRecord store"):
        patches_tfds.open_split(tmp_path, "train")
    with pytest.raises(InputError, match="neither a train nor a val nor a test folder"):
        patches_tfds.build(
            tmp_path, load_dataset("luad_histoseg", ""), SIZE, tmp_path / "arrayrecord"
        )
