import itertools
import multiprocessing
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from data import patch_files, synthetic
from data.dataset import load_dataset
from tests.conftest import COUNTS, SIZE
from wsss_jax import inputs, patch_records, pixels, sources
from wsss_jax.errors import InputError


@pytest.fixture
def data(tissue_dir):
    config = base.phase1("").data
    config.root, config.patch_size = str(tissue_dir), SIZE
    return config


@pytest.fixture
def dataset(tissue_dir):
    return load_dataset("", tissue_dir)


def _indices(batches):
    return [b["index"][b["weight"] > 0].tolist() for b in batches]


def test_an_epoch_holds_every_patch_once_in_an_order_of_seed_and_epoch(data, dataset):
    source = sources.open_source(data, dataset, "train")
    order = inputs.Order(seed=5, epochs=2)

    def read_indices(order):
        return _indices(inputs.read_batches(source, 5, workers=0, order=order))

    whole = list(inputs.read_batches(source, 5, workers=0, order=order))
    assert len(whole) == 2 * inputs.count_steps(len(source), 5, drop_last=False) == 6
    indices = _indices(whole)
    epochs = [list(itertools.chain(*indices[:3])), list(itertools.chain(*indices[3:]))]
    assert all(sorted(epoch) == list(range(COUNTS["train"])) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert whole[2]["weight"].tolist() == [1, 1, 0, 0, 0]
    assert indices == read_indices(order)
    assert indices != read_indices(order._replace(seed=6))
    assert indices[4:] == read_indices(order._replace(start=4))
    dropped = read_indices(order._replace(drop_last=True))
    assert [len(x) for x in dropped] == [5, 5, 5, 5]


def test_worker_processes_give_the_same_batches(data, dataset):
    source = sources.open_source(data, dataset, "train")
    alone = list(inputs.read_batches(source, 4, workers=0, order=inputs.Order(seed=1)))
    shared = list(inputs.read_batches(source, 4, workers=2, order=inputs.Order(seed=1)))
    for one, other in zip(alone, shared, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_labels_and_masks_of_annotated_patches(data, dataset):
    source = sources.open_source(data, dataset, "val")
    batch = next(inputs.read_batches(source, COUNTS["val"], workers=0))
    assert batch["image"].shape == (5, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
    assert batch["masks"].shape == (5, 1, SIZE, SIZE)
    for label, mask in zip(batch["label"], batch["masks"][:, 0]):
        counts = np.bincount(mask.ravel(), minlength=5)[:4]
        assert label.tolist() == (counts >= 0.05 * SIZE**2).astype(int).tolist()


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_store_holds_what_the_folder_holds(data, dataset, split):
    folder = sources.open_source(data, dataset, split)
    data.source = "tfds"
    store = sources.open_source(data, dataset, split)
    assert sorted(store.names) == sorted(folder.names)
    for index, name in enumerate(store.names):
        one, other = store[index], folder[folder.names.index(name)]
        assert one.keys() == other.keys()
        for key in one.keys() - {"index"}:
            np.testing.assert_array_equal(one[key], other[key])


def test_pseudo_masks_join_images_of_the_store(data, dataset, tmp_path):
    """Each mask holds one value, which identifies its patch and layer."""
    names = sources.open_source(data, dataset, "train").names
    layers = [tmp_path / layer for layer in ("PM_b5_2", "PM_bn7")]
    for shift, layer in enumerate(layers):
        layer.mkdir()
        for index, name in enumerate(names):
            mask = np.full((SIZE, SIZE), (index + shift) % 5, np.uint8)
            patch_files.write_mask(layer / f"{name}.png", mask, dataset)
    data.source = "tfds"
    source = sources.open_source(data, dataset, "train", layers)
    for index in range(len(source)):
        expected = names.index(source.names[index])
        values = source[index]["masks"][:, 0, 0]
        assert values.tolist() == [expected % 5, (expected + 1) % 5]


def test_patches_of_any_size_can_be_resized(data, dataset, tmp_path):
    for split in ("train", "val/img", "val/mask"):
        (tmp_path / split).mkdir(parents=True)
    image, mask = synthetic.draw_patch(np.random.default_rng(0), 48)
    patch_files.write_image(tmp_path / "train" / "a-[1 0 0 1].png", image[:40])
    patch_files.write_image(tmp_path / "val" / "img" / "b.png", image)
    patch_files.write_mask(tmp_path / "val" / "mask" / "b.png", mask, dataset)
    data.root = str(tmp_path)
    with pytest.raises(InputError, match="48x40 pixels, expected 32x32"):
        sources.open_source(data, dataset, "train")
    data.resize = True
    assert sources.open_source(data, dataset, "train")[0]["image"].shape == (SIZE, SIZE, 3)
    resized = sources.open_source(data, dataset, "val")[0]
    assert resized["masks"].shape == (1, SIZE, SIZE)
    assert set(np.unique(resized["masks"])) <= set(np.unique(mask))


def test_validation_patches_without_masks_carry_labels(data, dataset, tmp_path, tissue_dir):
    (tmp_path / "val").mkdir()
    for path in (tissue_dir / "train").iterdir():
        (tmp_path / "val" / path.name).write_bytes(path.read_bytes())
    data.root = str(tmp_path)
    source = sources.open_source(data, dataset, "val")
    assert len(source) == COUNTS["train"]
    assert source[0].keys() == {"image", "label", "index"} and source[0]["label"].any()


def test_missing_pseudo_masks_are_named(data, dataset, tmp_path):
    (tmp_path / "PM_bn7").mkdir()
    with pytest.raises(InputError, match=r"PM_bn7.*12 masks .* are missing"):
        sources.open_source(data, dataset, "train", [tmp_path / "PM_bn7"])


def test_masks_are_part_of_the_records(data, dataset, tmp_path):
    """Masks may have suffixes in upper case, and hidden files beside them."""
    names = sources.open_source(data, dataset, "train").names
    for name in names:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        patch_files.write_mask(tmp_path / f"{name}.PNG", mask, dataset)
        (tmp_path / f"._{name}.png").write_bytes(b"macOS")
    data.source = "tfds"
    in_store = sources.open_source(data, dataset, "train", [tmp_path])
    data.source = "folder"
    before = sources.open_source(data, dataset, "train", [tmp_path])
    assert in_store.records == before.records and len(before.records) == len(names)
    assert in_store[0]["masks"].shape == before[0]["masks"].shape == (1, SIZE, SIZE)
    patch_files.write_mask(tmp_path / f"{names[3]}.PNG", mask + np.uint8(1), dataset)
    now = sources.open_source(data, dataset, "train", [tmp_path])
    difference = patch_records.find_difference(before.records, now.records)
    assert difference == f"the content of {names[3]} has changed"


def test_a_class_without_patches_or_masks_is_named(data, dataset, tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "masks").mkdir()
    image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    for stem in ("a-[1 0 1 0]", "b-[0 0 0 0]", "c-[1 0 0 0]"):
        patch_files.write_image(tmp_path / "train" / f"{stem}.png", image)
        patch_files.write_mask(tmp_path / "masks" / f"{stem}.png", mask, dataset)
    data.root = str(tmp_path)
    sources.open_source(data, dataset, "train", [tmp_path / "masks"])
    first, second, third = capsys.readouterr().out.splitlines()
    assert "no training patch has necrosis, stroma in its label" in first
    assert "1 training patches have no class in their label, such as b-[0 0 0 0]" in second
    assert f"{tmp_path / 'masks'}: no mask has lymphocytes, though labels do" in third
    patch_files.write_image(tmp_path / "train" / "d-[0 1 1 1].png", image)
    (tmp_path / "train" / "b-[0 0 0 0].png").unlink()
    sources.open_source(data, dataset, "train")
    assert capsys.readouterr().out == ""


def test_the_death_of_a_worker_is_reported(data, dataset):
    source = sources.open_source(data, dataset, "train")
    batches = inputs.read_batches(source, 2, workers=1, order=inputs.Order(seed=0, epochs=100))
    next(batches)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(InputError, match=r"a process that decodes patches died .*data\.workers"):
        for _ in batches:
            pass


def test_closing_does_not_wait_for_busy_workers(data, dataset):
    """A worker that hands over a batch does not end; Grain would wait 25 seconds for it."""
    source = sources.open_source(data, dataset, "train")
    batches = inputs.read_batches(
        [source[i % 12] for i in range(400)], 100, workers=1, order=inputs.Order(epochs=100)
    )
    next(batches)
    time.sleep(0.5)  # until the pipe is full
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 10


def test_scale_equals_a_division_to_the_last_bit():
    """As in PyTorch: in float32, half of all values differ if multiplied by 1 / 255."""
    image = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1).repeat(3, axis=-1)
    model = base.phase2("m", "reference").model
    scaled = jax.jit(lambda image: pixels.scale(image, model))(image)
    np.testing.assert_array_equal(scaled, image.astype(np.float32) / np.float32(255))


def test_scale():
    model = base.phase2("m").model
    image = jnp.full((1, 1, 1, 3), 255, jnp.uint8)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(pixels.scale(image, model)[0, 0, 0], expected, rtol=1e-6)
