"""data/folders.py: real PNG files in folders of every spelling, good and bad."""

import re
import threading

import numpy as np
import pytest
from PIL import Image

from data import folders
from data.dataset import load_dataset
from wsss_jax.errors import InputError

LUAD = load_dataset("luad_histoseg", "")
SIZE = 12


def image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    folders.write_image(path, pixels)
    return pixels


def mask(path, size=SIZE, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 5, (size, size)).astype(np.uint8)
    if value is not None:
        pixels[:] = value
    folders.write_mask(path, pixels, LUAD)
    return pixels


@pytest.mark.parametrize("folder", ["train", "training", "train/img", "1.training"])
def test_labelled_patches(tmp_path, folder):
    image(tmp_path / folder / "b-[0 1 0 0].png")
    image(tmp_path / folder / "a-[1 0 0 1].png")
    (tmp_path / folder / "._a-[1 0 0 1].png").write_bytes(b"macOS")
    (tmp_path / folder / "notes.txt").write_text("")
    patches = folders.labelled_patches(tmp_path, "train", LUAD)
    assert [patch.stem for patch in patches] == ["a-[1 0 0 1]", "b-[0 1 0 0]"]
    assert patches[0].label == (1, 0, 0, 1) and patches[0].mask is None
    assert patches[0].image == tmp_path / folder / "a-[1 0 0 1].png"


@pytest.mark.parametrize(
    ("folder", "split"),
    [("val", "val"), ("valid", "val"), ("validation", "val"), ("test", "test"), ("train", "train")],
)
def test_annotated_patches(tmp_path, folder, split):
    for stem in ("2", "1"):
        image(tmp_path / folder / "img" / f"{stem}.png")
        mask(tmp_path / folder / "mask" / f"{stem}.png")
    patches = folders.annotated_patches(tmp_path, split, LUAD)
    assert [patch.stem for patch in patches] == ["1", "2"]
    assert patches[0].mask == tmp_path / folder / "mask" / "1.png" and patches[0].label is None


def test_folders_missing_empty_or_double(tmp_path):
    with pytest.raises(InputError, match=r"no folder of the train split; expected.*train, train"):
        folders.labelled_patches(tmp_path, "train", LUAD)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train: no PNG files"):
        folders.labelled_patches(tmp_path, "train", LUAD)
    (tmp_path / "training").mkdir()
    with pytest.raises(InputError, match="both train and training could be"):
        folders.labelled_patches(tmp_path, "train", LUAD)
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match=r"val/img: no such folder"):
        folders.annotated_patches(tmp_path, "val", LUAD)


def test_missing_partners_are_named(tmp_path):
    for stem in range(5):
        image(tmp_path / "val" / "img" / f"{stem}.png")
    mask(tmp_path / "val" / "mask" / "4.png")
    with pytest.raises(InputError, match=r"4 masks of .* 0\.png, 1\.png, 2\.png, \.\.\."):
        folders.annotated_patches(tmp_path, "val", LUAD)
    for stem in range(6):
        mask(tmp_path / "val" / "mask" / f"{stem}.png")
    with pytest.raises(InputError, match=r"img: 1 images of .* are missing: 5\.png;"):
        folders.annotated_patches(tmp_path, "val", LUAD)


def test_masks_for(tmp_path):
    image(tmp_path / "train" / "a-[1 0 0 1].png")
    patches = folders.labelled_patches(tmp_path, "train", LUAD)
    with pytest.raises(InputError, match="no such folder of masks"):
        folders.masks_for(patches, tmp_path / "PM_bn7")
    mask(tmp_path / "PM_bn7" / "other.png")
    with pytest.raises(InputError, match=r"1 masks .* are missing: a-\[1 0 0 1\]\.png"):
        folders.masks_for(patches, tmp_path / "PM_bn7")
    mask(tmp_path / "PM_bn7" / "a-[1 0 0 1].png")
    (patch,) = folders.masks_for(patches, tmp_path / "PM_bn7")
    assert patch == patches[0]._replace(mask=tmp_path / "PM_bn7" / "a-[1 0 0 1].png")


def test_images_round_trip(tmp_path):
    pixels = image(tmp_path / "a.png")
    read = folders.read_image(tmp_path / "a.png", SIZE)
    np.testing.assert_array_equal(read, pixels)
    assert read.dtype == np.uint8 and read.flags.writeable
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(folders.read_image(tmp_path / "rgba.png", None), pixels)
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="not an 8-bit RGB image"):
        folders.read_image(tmp_path / "deep.png", None)


def test_masks_are_indices_with_the_palette_of_the_data_set(tmp_path):
    pixels = mask(tmp_path / "m.png")
    np.testing.assert_array_equal(folders.read_mask(tmp_path / "m.png", LUAD, SIZE), pixels)
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "P"
        colors = np.array(picture.convert("RGB"))
    np.testing.assert_array_equal(colors, np.array(LUAD.palette, np.uint8)[pixels])
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(folders.read_mask(tmp_path / "grey.png", LUAD, None), pixels)


def test_bad_masks(tmp_path):
    image(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="pixel format RGB, not class indices"):
        folders.read_mask(tmp_path / "rgb.png", LUAD, None)
    Image.fromarray(np.full((SIZE, SIZE), 5, np.uint8)).save(tmp_path / "five.png")
    with pytest.raises(InputError, match=r"five\.png: mask value 5 is outside 0\.\.4"):
        folders.read_mask(tmp_path / "five.png", LUAD, None)
    np.testing.assert_array_equal(folders.read_values(tmp_path / "five.png", None), 5)
    mask(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"12x12 pixels, expected 224x224"):
        folders.read_mask(tmp_path / "m.png", LUAD, 224)


def test_write_mask_refuses_and_leaves_nothing_behind(tmp_path):
    for wrong in (
        np.full((2, 2), 5, np.uint8),
        np.zeros((2, 2), np.int64),
        np.zeros((2, 2, 1), np.uint8),
    ):
        with pytest.raises(ValueError, match=re.escape("(H, W) uint8 of 0..4")):
            folders.write_mask(tmp_path / "m.png", wrong, LUAD)
    with pytest.raises(FileNotFoundError):
        folders.write_mask(tmp_path / "none" / "m.png", np.zeros((2, 2), np.uint8), LUAD)
    assert list(tmp_path.iterdir()) == []


def test_write_mask_replaces_in_one_step(tmp_path, monkeypatch):
    before = mask(tmp_path / "m.png")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folders.write_mask(tmp_path / "m.png", np.zeros_like(before), LUAD)
    np.testing.assert_array_equal(folders.read_mask(tmp_path / "m.png", LUAD, SIZE), before)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_threads_may_write_one_file(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    writers = [
        threading.Thread(target=folders.write_mask, args=(tmp_path / "m.png", pixels, LUAD))
        for _ in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def damage(path, kind):
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
            "text": b"not a picture",
            "empty": b"",
        }[kind]
    )


@pytest.mark.parametrize("kind", ["truncated", "flipped", "text", "empty"])
def test_damaged_files(tmp_path, kind):
    picture, indices = tmp_path / "a.png", tmp_path / "m.png"
    image(picture)
    mask(indices)
    damage(picture, kind)
    with pytest.raises(InputError, match="cannot be read") as in_image:
        folders.read_image(picture, SIZE)
    with pytest.raises(InputError, match="cannot be read") as in_check:
        folders.check_patches([folders.Patch("a", picture, None, None)], SIZE, LUAD)
    damage(indices, kind)
    with pytest.raises(InputError, match="cannot be read") as in_mask:
        folders.read_mask(indices, LUAD, SIZE)
    for caught, path in ((in_image, picture), (in_check, picture), (in_mask, indices)):
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and message.count(path.name) == 1
        assert "\n" not in message


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"a\.png: no such file"):
        folders.read_image(tmp_path / "a.png", None)


def test_check_patches_names_three_and_counts_all(tmp_path):
    for stem in range(6):
        image(tmp_path / "val" / "img" / f"{stem}.png")
        mask(tmp_path / "val" / "mask" / f"{stem}.png")
    patches = folders.annotated_patches(tmp_path, "val", LUAD)
    folders.check_patches(patches, SIZE, LUAD)
    folders.check_patches(patches, None, LUAD)

    damage(patches[0].image, "truncated")
    with pytest.raises(InputError, match=r"^\S*0\.png: cannot be read"):
        folders.check_patches(patches, SIZE, LUAD)
    image(patches[1].image, size=SIZE + 1)
    Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(patches[2].mask)
    damage(patches[4].mask, "text")
    with pytest.raises(InputError) as caught:
        folders.check_patches(patches, SIZE, LUAD)
    message = str(caught.value)
    assert message.startswith("4 of 6 patches cannot be used: ")
    for part in ("0.png: cannot be read", "1.png: 13x13 pixels", "2.png: mask value 9"):
        assert part in message
    assert "4.png" not in message and "\n" not in message


def test_check_patches_compares_mask_and_image(tmp_path):
    image(tmp_path / "a.png", size=10)
    mask(tmp_path / "m.png", size=11)
    patch = folders.Patch("a", tmp_path / "a.png", tmp_path / "m.png", None)
    with pytest.raises(InputError, match=r"m\.png: 11x11 pixels but its image 10x10"):
        folders.check_patches([patch], None, LUAD)
