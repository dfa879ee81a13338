"""data/folders.py: real PNG files in folders of every spelling, good and bad."""

import os
import re
import threading

import numpy as np
import pytest
from PIL import Image

from data import folders
from data.dataset import load_dataset
from tests.data.made_png import chunk, made, rows
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
    with pytest.raises(InputError, match="not a whole picture") as in_image:
        folders.read_image(picture, SIZE)
    with pytest.raises(InputError, match="not a whole picture") as in_check:
        folders.check_patches([folders.Patch("a", picture, None, None)], SIZE, LUAD)
    damage(indices, kind)
    with pytest.raises(InputError, match="not a whole picture") as in_mask:
        folders.read_mask(indices, LUAD, SIZE)
    for caught, path in ((in_image, picture), (in_check, picture), (in_mask, indices)):
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and message.count(path.name) == 1
        assert "\n" not in message


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"a\.png: No such file or directory; correct the path"):
        folders.read_image(tmp_path / "a.png", None)


def test_check_patches_names_three_and_counts_all(tmp_path):
    for stem in range(6):
        image(tmp_path / "val" / "img" / f"{stem}.png")
        mask(tmp_path / "val" / "mask" / f"{stem}.png")
    patches = folders.annotated_patches(tmp_path, "val", LUAD)
    folders.check_patches(patches, SIZE, LUAD)
    folders.check_patches(patches, None, LUAD)

    damage(patches[0].image, "truncated")
    with pytest.raises(InputError, match=r"^\S*0\.png: not a whole picture"):
        folders.check_patches(patches, SIZE, LUAD)
    image(patches[1].image, size=SIZE + 1)
    Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(patches[2].mask)
    damage(patches[4].mask, "text")
    with pytest.raises(InputError) as caught:
        folders.check_patches(patches, SIZE, LUAD)
    message = str(caught.value)
    assert message.startswith("4 of 6 patches cannot be used: ")
    for part in ("0.png: not a whole picture", "1.png: 13x13 pixels", "2.png: mask value 9"):
        assert part in message
    assert "4.png" not in message and "\n" not in message


def test_check_patches_compares_mask_and_image(tmp_path):
    image(tmp_path / "a.png", size=10)
    mask(tmp_path / "m.png", size=11)
    patch = folders.Patch("a", tmp_path / "a.png", tmp_path / "m.png", None)
    with pytest.raises(InputError, match=r"m\.png: 11x11 pixels but its image 10x10"):
        folders.check_patches([patch], None, LUAD)


def test_endings_in_capitals(tmp_path):
    image(tmp_path / "val" / "img" / "a.PNG")
    mask(tmp_path / "val" / "mask" / "a.png")
    image(tmp_path / "val" / "img" / "b.png")
    mask(tmp_path / "val" / "mask" / "b.Png")
    patches = folders.annotated_patches(tmp_path, "val", LUAD)
    assert [patch.stem for patch in patches] == ["a", "b"]
    folders.check_patches(patches, SIZE, LUAD)
    mask(tmp_path / "PM_bn7" / "a.PNG")
    (patch,) = folders.masks_for(patches[:1], tmp_path / "PM_bn7")
    assert patch.mask == tmp_path / "PM_bn7" / "a.PNG"


def test_the_order_does_not_depend_on_the_endings(tmp_path):
    names = ["a-1.png", "a.png", "b.png"]
    for name in names:
        image(tmp_path / "one" / name)
        image(tmp_path / "two" / name.replace(".png", ".PNG"))
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
def test_names_that_some_file_systems_take_for_one(tmp_path, one, other):
    """Their masks would overwrite each other."""
    for name in (one, other):
        image(tmp_path / "train" / name)
    with pytest.raises(InputError, match="differ only in upper and lower case") as caught:
        folders.labelled_patches(tmp_path, "train", LUAD)
    assert one in str(caught.value) and other in str(caught.value)
    for name in (one, other):
        mask(tmp_path / "val" / "mask" / name)
    image(tmp_path / "val" / "img" / one)
    with pytest.raises(InputError, match="rename or remove one"):
        folders.annotated_patches(tmp_path, "val", LUAD)


def test_hidden_masks_are_passed_over(tmp_path):
    image(tmp_path / "val" / "img" / "a.png")
    mask(tmp_path / "val" / "mask" / "a.png")
    (tmp_path / "val" / "mask" / "._a.png").write_bytes(b"macOS")
    patches = folders.annotated_patches(tmp_path, "val", LUAD)
    assert folders.masks_for(patches, tmp_path / "val" / "mask") == patches
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "._a.png").write_bytes(b"macOS")
    assert folders.find_pngs(tmp_path / "none") == {}


def test_pictures_of_other_types_are_counted_once(tmp_path, capsys):
    image(tmp_path / "train" / "a-[1 1 0 0].png")
    for name in ("b.jpg", "c.JPG", "d.tif", "._e.jpg", "notes.txt"):
        (tmp_path / "train" / name).write_bytes(b"")
    for _ in range(2):
        assert len(folders.labelled_patches(tmp_path, "train", LUAD)) == 1
    assert capsys.readouterr().out == (
        f"{tmp_path / 'train'}: 2 .jpg, 1 .tif passed over, only PNG files are read; save as PNG "
        "what belongs to the data set\n"
    )
    image(tmp_path / "val" / "img" / "a.png")
    mask(tmp_path / "val" / "mask" / "a.png")
    (tmp_path / "val" / "mask" / "a.bmp").write_bytes(b"")
    folders.annotated_patches(tmp_path, "val", LUAD)
    assert "mask: 1 .bmp passed over" in capsys.readouterr().out


@pytest.mark.parametrize("character", ["\n", "\t", "\x1b", "\u202e", "\udcff"])
def test_names_that_do_not_print(tmp_path, character):
    image(tmp_path / "train" / "a-[1 1 0 0].png")
    os.rename(
        tmp_path / "train" / "a-[1 1 0 0].png", tmp_path / "train" / f"a{character}b-[1 1 0 0].png"
    )
    with pytest.raises(InputError, match="has characters that do not print; rename it") as caught:
        folders.labelled_patches(tmp_path, "train", LUAD)
    assert character not in str(caught.value)
    assert repr(f"a{character}b-[1 1 0 0].png") in str(caught.value)


def test_a_pipe_among_the_patches_is_not_opened(tmp_path):
    image(tmp_path / "train" / "a-[1 1 0 0].png")
    os.mkfifo(tmp_path / "train" / "b-[1 1 0 0].png")
    patches = folders.labelled_patches(tmp_path, "train", LUAD)
    with pytest.raises(InputError, match=r"b-\[1 1 0 0\].png: a named pipe, not a file"):
        folders.check_patches(patches, SIZE, LUAD)
    with pytest.raises(InputError, match=r"b-\[1 1 0 0\].png: a named pipe, not a file"):
        folders.check_masks([patches[1].image], SIZE, LUAD)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "train")
    assert len(folders.labelled_patches(tmp_path / "linked", "train", LUAD)) == 2


def test_a_name_as_long_as_names_can_be(tmp_path):
    name = 241 * "n" + ".png"
    pixels = mask(tmp_path / name)
    np.testing.assert_array_equal(folders.read_mask(tmp_path / name, LUAD, SIZE), pixels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_have_the_values_stored(tmp_path, bits):
    """Pillow spreads them over 0..255: 1 of 2 bits would be 85."""
    values = np.arange(8) % min(2**bits, 5)
    digits = "".join(f"{value:0{bits}b}" for value in values)
    stored = b"\0" + int(digits, 2).to_bytes(bits, "big")
    (tmp_path / "m.png").write_bytes(made(8, 8, stored * 8, bits=bits))
    expected = np.tile(values, (8, 1))
    np.testing.assert_array_equal(folders.read_mask(tmp_path / "m.png", LUAD, 8), expected)
    palette = chunk(b"PLTE", bytes(range(3 * 2**bits)))
    content = made(8, 8, stored * 8, bits=bits, color=3, extra=palette)
    (tmp_path / "p.png").write_bytes(content)
    np.testing.assert_array_equal(folders.read_mask(tmp_path / "p.png", LUAD, 8), expected)


def test_transparent_patches_lie_on_white(tmp_path):
    """A tile as `read_region` gives it: where nothing was scanned, 0, 0, 0, 0."""
    pixels = image(tmp_path / "a.png")
    alpha = np.full((SIZE, SIZE), 255, np.uint8)
    alpha[:, :4] = 0
    stored = np.dstack([pixels * (alpha > 0)[..., None], alpha])
    Image.fromarray(stored).save(tmp_path / "transparent.png")
    shown = folders.read_image(tmp_path / "transparent.png", SIZE)
    assert (shown[:, :4] == 255).all()
    np.testing.assert_array_equal(shown[:, 4:], pixels[:, 4:])


def test_masks_are_turned_as_their_images(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    pixels, indices = image(tmp_path / "a.png"), mask(tmp_path / "m.png")
    for name in ("a.png", "m.png"):
        with Image.open(tmp_path / name) as picture:
            picture.crop((0, 0, 8, SIZE)).save(tmp_path / name, exif=exif)
    patch = folders.Patch("a", tmp_path / "a.png", tmp_path / "m.png", None)
    folders.check_patches([patch], None, LUAD)
    turned = folders.read_image(patch.image, None)
    np.testing.assert_array_equal(turned, np.rot90(pixels[:, :8], -1))
    turned = folders.read_mask(patch.mask, LUAD, None)
    np.testing.assert_array_equal(turned, np.rot90(indices[:, :8], -1))
    Image.fromarray(np.zeros((SIZE, 8), np.uint8)).save(tmp_path / "m.png")  # not turned
    with pytest.raises(InputError, match=r"m\.png: 8x12 pixels but its image 12x8"):
        folders.check_patches([patch], None, LUAD)


@pytest.mark.parametrize("missing", [1, 6])
def test_missing_rows_are_found_before_a_run(tmp_path, missing):
    stored = rows(np.full((12, 36), 200, np.uint8))
    rest = stored[: len(stored) - missing * 37]
    (tmp_path / "a.png").write_bytes(made(12, 12, rest, color=2))
    with pytest.raises(InputError, match=r"a\.png: not a whole picture .*% of its pixels"):
        folders.check_patches([folders.Patch("a", tmp_path / "a.png", None, None)], SIZE, LUAD)
    (tmp_path / "a.png").write_bytes(made(12, 12, stored, color=2))
    folders.check_patches([folders.Patch("a", tmp_path / "a.png", None, None)], SIZE, LUAD)


def test_pixels_that_do_not_decode_are_found_before_a_run(tmp_path):
    """Its checksums are right, its rows complete; no filter is called 9."""
    stored = b"".join(b"\x09" + bytes(36) for _ in range(12))
    (tmp_path / "a.png").write_bytes(made(12, 12, stored, color=2))
    with pytest.raises(InputError, match=r"a\.png: not a whole picture"):
        folders.check_patches([folders.Patch("a", tmp_path / "a.png", None, None)], SIZE, LUAD)


def test_check_masks_says_which_values_there_are(tmp_path):
    for value in (1, 3):
        mask(tmp_path / f"{value}.png", value=value)
    paths = [tmp_path / "1.png", tmp_path / "3.png"]
    checksums, values = folders.check_masks(paths, SIZE, LUAD)
    assert values == {1, 3} and checksums[0] != checksums[1]
    damage(paths[1], "truncated")
    with pytest.raises(InputError, match=r"3\.png: not a whole picture"):
        folders.check_masks(paths, SIZE, LUAD)


def test_pictures_that_lie_elsewhere_are_said(tmp_path, capsys):
    image(tmp_path / "Train" / "img" / "a-[1 0 0 0].png")
    image(tmp_path / "Train" / "b-[1 0 0 0].png")
    image(tmp_path / "Train" / "slide 1" / "c-[1 0 0 0].png")
    assert folders.has_split(tmp_path, "train")
    (patch,) = folders.labelled_patches(tmp_path, "train", LUAD)
    assert patch.stem == "a-[1 0 0 0]"
    said = capsys.readouterr().out
    assert "1 pictures beside img are passed over" in said and "in slide 1 are passed over" in said
