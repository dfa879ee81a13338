"""data/patch_checks.py: damaged and unsuitable files are found before a run."""

import os

import numpy as np
import pytest
from PIL import Image

from data import folders, patch_checks, patch_files
from tests.data.png_writer import make_png, make_rows
from tests.data.random_patches import LUAD, SIZE, damage, write_random_image, write_random_mask
from wsss_jax.errors import InputError


@pytest.mark.parametrize("kind", ["truncated", "flipped", "text", "empty"])
def test_damaged_files(tmp_path, kind):
    picture, indices = tmp_path / "a.png", tmp_path / "m.png"
    write_random_image(picture)
    write_random_mask(indices)
    damage(picture, kind)
    with pytest.raises(InputError, match="damaged, or not a") as in_image:
        patch_files.read_image(picture, SIZE)
    with pytest.raises(InputError, match="damaged, or not a") as in_check:
        patch_checks.check_patches([folders.Patch("a", picture, None, None)], SIZE, LUAD)
    damage(indices, kind)
    with pytest.raises(InputError, match="damaged, or not a") as in_mask:
        patch_files.read_mask(indices, LUAD, SIZE)
    for caught, path in ((in_image, picture), (in_check, picture), (in_mask, indices)):
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and message.count(path.name) == 1
        assert "\n" not in message


def test_check_patches_names_three_and_counts_all(tmp_path):
    for stem in range(6):
        write_random_image(tmp_path / "val" / "img" / f"{stem}.png")
        write_random_mask(tmp_path / "val" / "mask" / f"{stem}.png")
    patches = folders.list_annotated_patches(tmp_path, "val", LUAD)
    patch_checks.check_patches(patches, SIZE, LUAD)
    patch_checks.check_patches(patches, None, LUAD)

    damage(patches[0].image, "truncated")
    with pytest.raises(InputError, match=r"^\S*0\.png: damaged, or not a"):
        patch_checks.check_patches(patches, SIZE, LUAD)
    write_random_image(patches[1].image, size=SIZE + 1)
    Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(patches[2].mask)
    damage(patches[4].mask, "text")
    with pytest.raises(InputError) as caught:
        patch_checks.check_patches(patches, SIZE, LUAD)
    message = str(caught.value)
    assert message.startswith("4 of 6 patches cannot be used: ")
    for part in ("0.png: damaged, or not a", "1.png: 13x13 pixels", "2.png: mask value 9"):
        assert part in message
    assert "4.png" not in message and "\n" not in message


def test_check_patches_compares_mask_and_image(tmp_path):
    write_random_image(tmp_path / "a.png", size=10)
    write_random_mask(tmp_path / "m.png", size=11)
    patch = folders.Patch("a", tmp_path / "a.png", tmp_path / "m.png", None)
    with pytest.raises(InputError, match=r"m\.png: 11x11 pixels but its image 10x10"):
        patch_checks.check_patches([patch], None, LUAD)


def test_a_pipe_among_the_patches_is_not_opened(tmp_path):
    write_random_image(tmp_path / "train" / "a-[1 1 0 0].png")
    os.mkfifo(tmp_path / "train" / "b-[1 1 0 0].png")
    patches = folders.list_labeled_patches(tmp_path, "train", LUAD)
    with pytest.raises(InputError, match=r"b-\[1 1 0 0\].png: a named pipe, not a file"):
        patch_checks.check_patches(patches, SIZE, LUAD)
    with pytest.raises(InputError, match=r"b-\[1 1 0 0\].png: a named pipe, not a file"):
        patch_checks.check_masks([patches[1].image], SIZE, LUAD)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "train")
    assert len(folders.list_labeled_patches(tmp_path / "linked", "train", LUAD)) == 2


def test_masks_are_turned_as_their_images(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    pixels, indices = write_random_image(tmp_path / "a.png"), write_random_mask(tmp_path / "m.png")
    for name in ("a.png", "m.png"):
        with Image.open(tmp_path / name) as picture:
            picture.crop((0, 0, 8, SIZE)).save(tmp_path / name, exif=exif)
    patch = folders.Patch("a", tmp_path / "a.png", tmp_path / "m.png", None)
    patch_checks.check_patches([patch], None, LUAD)
    turned = patch_files.read_image(patch.image, None)
    np.testing.assert_array_equal(turned, np.rot90(pixels[:, :8], -1))
    turned = patch_files.read_mask(patch.mask, LUAD, None)
    np.testing.assert_array_equal(turned, np.rot90(indices[:, :8], -1))
    Image.fromarray(np.zeros((SIZE, 8), np.uint8)).save(tmp_path / "m.png")  # not turned
    with pytest.raises(InputError, match=r"m\.png: 8x12 pixels but its image 12x8"):
        patch_checks.check_patches([patch], None, LUAD)


@pytest.mark.parametrize("missing", [1, 6])
def test_missing_rows_are_found_before_a_run(tmp_path, missing):
    stored = make_rows(np.full((12, 36), 200, np.uint8))
    rest = stored[: len(stored) - missing * 37]
    (tmp_path / "a.png").write_bytes(make_png(12, 12, rest, color=2))
    with pytest.raises(InputError, match=r"a\.png: damaged, or not a .*% of its pixels"):
        patch_checks.check_patches([folders.Patch("a", tmp_path / "a.png", None, None)], SIZE, LUAD)
    (tmp_path / "a.png").write_bytes(make_png(12, 12, stored, color=2))
    patch_checks.check_patches([folders.Patch("a", tmp_path / "a.png", None, None)], SIZE, LUAD)


def test_pixels_that_do_not_decode_are_found_before_a_run(tmp_path):
    """Checksums are right and rows complete, but there is no filter 9."""
    stored = b"".join(b"\x09" + bytes(36) for _ in range(12))
    (tmp_path / "a.png").write_bytes(make_png(12, 12, stored, color=2))
    with pytest.raises(InputError, match=r"a\.png: damaged, or not a"):
        patch_checks.check_patches([folders.Patch("a", tmp_path / "a.png", None, None)], SIZE, LUAD)


def test_check_masks_returns_the_values(tmp_path):
    for value in (1, 3):
        write_random_mask(tmp_path / f"{value}.png", value=value)
    paths = [tmp_path / "1.png", tmp_path / "3.png"]
    checksums, values = patch_checks.check_masks(paths, SIZE, LUAD)
    assert values == {1, 3} and checksums[0] != checksums[1]
    damage(paths[1], "truncated")
    with pytest.raises(InputError, match=r"3\.png: damaged, or not a"):
        patch_checks.check_masks(paths, SIZE, LUAD)
