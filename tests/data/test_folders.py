"""data/folders.py: real PNG files in folders of every spelling, good and bad."""

import os

import numpy as np
import pytest
from PIL import Image

from data import folders, patch_checks
from tests.data.random_patches import LUAD, SIZE, write_random_image, write_random_mask
from wsss_jax.errors import InputError


@pytest.mark.parametrize("folder", ["train", "training", "train/img", "1.training"])
def test_list_labeled_patches(tmp_path, folder):
    write_random_image(tmp_path / folder / "b-[0 1 0 0].png")
    write_random_image(tmp_path / folder / "a-[1 0 0 1].png")
    (tmp_path / folder / "._a-[1 0 0 1].png").write_bytes(b"macOS")
    (tmp_path / folder / "notes.txt").write_text("")
    patches = folders.list_labeled_patches(tmp_path, "train", LUAD)
    assert [patch.stem for patch in patches] == ["a-[1 0 0 1]", "b-[0 1 0 0]"]
    assert patches[0].label == (1, 0, 0, 1) and patches[0].mask is None
    assert patches[0].image == tmp_path / folder / "a-[1 0 0 1].png"


@pytest.mark.parametrize(
    ("folder", "split"),
    [("val", "val"), ("valid", "val"), ("validation", "val"), ("test", "test"), ("train", "train")],
)
def test_list_annotated_patches(tmp_path, folder, split):
    for stem in ("2", "1"):
        write_random_image(tmp_path / folder / "img" / f"{stem}.png")
        write_random_mask(tmp_path / folder / "mask" / f"{stem}.png")
    patches = folders.list_annotated_patches(tmp_path, split, LUAD)
    assert [patch.stem for patch in patches] == ["1", "2"]
    assert patches[0].mask == tmp_path / folder / "mask" / "1.png" and patches[0].label is None


def test_folders_missing_empty_or_double(tmp_path):
    with pytest.raises(InputError, match=r"no folder of the train split; expected.*train, train"):
        folders.list_labeled_patches(tmp_path, "train", LUAD)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train: no PNG files"):
        folders.list_labeled_patches(tmp_path, "train", LUAD)
    (tmp_path / "training").mkdir()
    with pytest.raises(InputError, match="both train and training could be"):
        folders.list_labeled_patches(tmp_path, "train", LUAD)
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match=r"val/img: no such folder"):
        folders.list_annotated_patches(tmp_path, "val", LUAD)


def test_missing_partners_are_named(tmp_path):
    for stem in range(5):
        write_random_image(tmp_path / "val" / "img" / f"{stem}.png")
    write_random_mask(tmp_path / "val" / "mask" / "4.png")
    with pytest.raises(InputError, match=r"4 masks of .* 0\.png, 1\.png, 2\.png, \.\.\."):
        folders.list_annotated_patches(tmp_path, "val", LUAD)
    for stem in range(6):
        write_random_mask(tmp_path / "val" / "mask" / f"{stem}.png")
    with pytest.raises(InputError, match=r"img: 1 images of .* are missing: 5\.png;"):
        folders.list_annotated_patches(tmp_path, "val", LUAD)


def test_find_masks(tmp_path):
    write_random_image(tmp_path / "train" / "a-[1 0 0 1].png")
    patches = folders.list_labeled_patches(tmp_path, "train", LUAD)
    with pytest.raises(InputError, match="no such folder of masks"):
        folders.find_masks(patches, tmp_path / "PM_bn7")
    write_random_mask(tmp_path / "PM_bn7" / "other.png")
    with pytest.raises(InputError, match=r"1 masks .* are missing: a-\[1 0 0 1\]\.png"):
        folders.find_masks(patches, tmp_path / "PM_bn7")
    write_random_mask(tmp_path / "PM_bn7" / "a-[1 0 0 1].png")
    (patch,) = folders.find_masks(patches, tmp_path / "PM_bn7")
    assert patch == patches[0]._replace(mask=tmp_path / "PM_bn7" / "a-[1 0 0 1].png")


def test_suffixes_in_upper_case(tmp_path):
    write_random_image(tmp_path / "val" / "img" / "a.PNG")
    write_random_mask(tmp_path / "val" / "mask" / "a.png")
    write_random_image(tmp_path / "val" / "img" / "b.png")
    write_random_mask(tmp_path / "val" / "mask" / "b.Png")
    patches = folders.list_annotated_patches(tmp_path, "val", LUAD)
    assert [patch.stem for patch in patches] == ["a", "b"]
    patch_checks.check_patches(patches, SIZE, LUAD)
    write_random_mask(tmp_path / "PM_bn7" / "a.PNG")
    (patch,) = folders.find_masks(patches[:1], tmp_path / "PM_bn7")
    assert patch.mask == tmp_path / "PM_bn7" / "a.PNG"


def test_the_order_does_not_depend_on_suffixes(tmp_path):
    names = ["a-1.png", "a.png", "b.png"]
    for name in names:
        write_random_image(tmp_path / "one" / name)
        write_random_image(tmp_path / "two" / name.replace(".png", ".PNG"))
    assert list(folders.find_pngs(tmp_path / "one")) == [name[:-4] for name in names]
    assert list(folders.find_pngs(tmp_path / "two")) == [name[:-4] for name in names]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("case-[1 1 0 0].png", "case-[1 1 0 0].PNG"),
        ("case-[1 1 0 0].png", "Case-[1 1 0 0].png"),
        ("\u00e9-[1 1 0 0].png", "e\u0301-[1 1 0 0].png"),
    ],
)
def test_names_that_some_file_systems_do_not_distinguish(tmp_path, one, other):
    """Their masks would overwrite each other."""
    for name in (one, other):
        write_random_image(tmp_path / "train" / name)
    with pytest.raises(InputError, match="differ only in upper and lower case") as caught:
        folders.list_labeled_patches(tmp_path, "train", LUAD)
    assert one in str(caught.value) and other in str(caught.value)
    for name in (one, other):
        write_random_mask(tmp_path / "val" / "mask" / name)
    write_random_image(tmp_path / "val" / "img" / one)
    with pytest.raises(InputError, match="rename or remove one"):
        folders.list_annotated_patches(tmp_path, "val", LUAD)


def test_hidden_masks_are_skipped(tmp_path):
    write_random_image(tmp_path / "val" / "img" / "a.png")
    write_random_mask(tmp_path / "val" / "mask" / "a.png")
    (tmp_path / "val" / "mask" / "._a.png").write_bytes(b"macOS")
    patches = folders.list_annotated_patches(tmp_path, "val", LUAD)
    assert folders.find_masks(patches, tmp_path / "val" / "mask") == patches
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "._a.png").write_bytes(b"macOS")
    assert folders.find_pngs(tmp_path / "none") == {}


def test_pictures_of_other_types_are_reported_once(tmp_path, capsys):
    write_random_image(tmp_path / "train" / "a-[1 1 0 0].png")
    for name in ("b.jpg", "c.JPG", "d.tif", "._e.jpg", "notes.txt"):
        (tmp_path / "train" / name).write_bytes(b"")
    for _ in range(2):
        assert len(folders.list_labeled_patches(tmp_path, "train", LUAD)) == 1
    assert capsys.readouterr().out == (
        f"{tmp_path / 'train'}: 2 .jpg, 1 .tif skipped, only PNG files are read; save pictures "
        "of the data set as PNG\n"
    )
    write_random_image(tmp_path / "val" / "img" / "a.png")
    write_random_mask(tmp_path / "val" / "mask" / "a.png")
    (tmp_path / "val" / "mask" / "a.bmp").write_bytes(b"")
    folders.list_annotated_patches(tmp_path, "val", LUAD)
    assert "mask: 1 .bmp skipped" in capsys.readouterr().out


@pytest.mark.parametrize("character", ["\n", "\t", "\x1b", "\u202e", "\udcff"])
def test_names_that_do_not_print(tmp_path, character):
    write_random_image(tmp_path / "train" / "a-[1 1 0 0].png")
    os.rename(
        tmp_path / "train" / "a-[1 1 0 0].png", tmp_path / "train" / f"a{character}b-[1 1 0 0].png"
    )
    with pytest.raises(InputError, match="has characters that do not print; rename it") as caught:
        folders.list_labeled_patches(tmp_path, "train", LUAD)
    assert character not in str(caught.value)
    assert repr(f"a{character}b-[1 1 0 0].png") in str(caught.value)


def test_pictures_in_other_folders_are_reported(tmp_path, capsys):
    write_random_image(tmp_path / "Train" / "img" / "a-[1 0 0 0].png")
    write_random_image(tmp_path / "Train" / "b-[1 0 0 0].png")
    write_random_image(tmp_path / "Train" / "slide 1" / "c-[1 0 0 0].png")
    assert folders.has_split(tmp_path, "train")
    (patch,) = folders.list_labeled_patches(tmp_path, "train", LUAD)
    assert patch.stem == "a-[1 0 0 0]"
    said = capsys.readouterr().out
    assert "1 pictures beside img are skipped" in said and "in slide 1 are skipped" in said


def test_measure_patch(tmp_path):
    write_random_image(tmp_path / "training" / "img" / "a-[1 0 0 1].png")
    assert folders.measure_patch(tmp_path) == SIZE
    wide = tmp_path / "training" / "img" / "A-[1 0 0 0].png"  # sorts before it
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(wide)
    with pytest.raises(InputError, match=r"A-\[1 0 0 0\]\.png is 30x20 pixels: .*resize=True"):
        folders.measure_patch(tmp_path)
