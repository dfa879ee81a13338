"""data/patch_files.py: images and masks are written and read back."""

import re
import threading

import numpy as np
import pytest
from PIL import Image

from data import patch_files
from tests.data.png_writer import make_chunk, make_png
from tests.data.random_patches import LUAD, SIZE, write_random_image, write_random_mask
from wsss_jax.errors import InputError


def test_images_round_trip(tmp_path):
    pixels = write_random_image(tmp_path / "a.png")
    read = patch_files.read_image(tmp_path / "a.png", SIZE)
    np.testing.assert_array_equal(read, pixels)
    assert read.dtype == np.uint8 and read.flags.writeable
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(patch_files.read_image(tmp_path / "rgba.png", None), pixels)
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="not an 8-bit RGB image"):
        patch_files.read_image(tmp_path / "deep.png", None)


def test_masks_are_indices_with_the_palette_of_the_data_set(tmp_path):
    pixels = write_random_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(patch_files.read_mask(tmp_path / "m.png", LUAD, SIZE), pixels)
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "P"
        colors = np.array(picture.convert("RGB"))
    np.testing.assert_array_equal(colors, np.array(LUAD.palette, np.uint8)[pixels])
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(patch_files.read_mask(tmp_path / "gray.png", LUAD, None), pixels)


def test_bad_masks(tmp_path):
    write_random_image(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="pixel format RGB, not class indices"):
        patch_files.read_mask(tmp_path / "rgb.png", LUAD, None)
    Image.fromarray(np.full((SIZE, SIZE), 5, np.uint8)).save(tmp_path / "five.png")
    with pytest.raises(InputError, match=r"five\.png: mask value 5 is outside 0\.\.4"):
        patch_files.read_mask(tmp_path / "five.png", LUAD, None)
    np.testing.assert_array_equal(patch_files.read_values(tmp_path / "five.png", None), 5)
    write_random_mask(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"12x12 pixels, expected 224x224"):
        patch_files.read_mask(tmp_path / "m.png", LUAD, 224)


def test_write_mask_refuses_and_leaves_nothing_behind(tmp_path):
    for wrong in (
        np.full((2, 2), 5, np.uint8),
        np.zeros((2, 2), np.int64),
        np.zeros((2, 2, 1), np.uint8),
    ):
        with pytest.raises(ValueError, match=re.escape("(H, W) uint8 of 0..4")):
            patch_files.write_mask(tmp_path / "m.png", wrong, LUAD)
    with pytest.raises(FileNotFoundError):
        patch_files.write_mask(tmp_path / "none" / "m.png", np.zeros((2, 2), np.uint8), LUAD)
    assert list(tmp_path.iterdir()) == []


def test_write_mask_replaces_in_one_step(tmp_path, monkeypatch):
    before = write_random_mask(tmp_path / "m.png")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(patch_files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch_files.write_mask(tmp_path / "m.png", np.zeros_like(before), LUAD)
    np.testing.assert_array_equal(patch_files.read_mask(tmp_path / "m.png", LUAD, SIZE), before)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_threads_may_write_one_file(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    writers = [
        threading.Thread(target=patch_files.write_mask, args=(tmp_path / "m.png", pixels, LUAD))
        for _ in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"a\.png: No such file or directory; correct the path"):
        patch_files.read_image(tmp_path / "a.png", None)


def test_the_longest_possible_name(tmp_path):
    name = 241 * "n" + ".png"
    pixels = write_random_mask(tmp_path / name)
    np.testing.assert_array_equal(patch_files.read_mask(tmp_path / name, LUAD, SIZE), pixels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_masks_of_few_bits_keep_their_values(tmp_path, bits):
    """Pillow scales them to 0..255: 1 of 2 bits would be 85."""
    values = np.arange(8) % min(2**bits, 5)
    digits = "".join(f"{value:0{bits}b}" for value in values)
    stored = b"\0" + int(digits, 2).to_bytes(bits, "big")
    (tmp_path / "m.png").write_bytes(make_png(8, 8, stored * 8, bits=bits))
    expected = np.tile(values, (8, 1))
    np.testing.assert_array_equal(patch_files.read_mask(tmp_path / "m.png", LUAD, 8), expected)
    palette = make_chunk(b"PLTE", bytes(range(3 * 2**bits)))
    content = make_png(8, 8, stored * 8, bits=bits, color=3, extra=palette)
    (tmp_path / "p.png").write_bytes(content)
    np.testing.assert_array_equal(patch_files.read_mask(tmp_path / "p.png", LUAD, 8), expected)


def test_transparent_patches_are_white(tmp_path):
    """A tile as OpenSlide's `read_region` returns it: 0, 0, 0, 0 where nothing was scanned."""
    pixels = write_random_image(tmp_path / "a.png")
    alpha = np.full((SIZE, SIZE), 255, np.uint8)
    alpha[:, :4] = 0
    stored = np.dstack([pixels * (alpha > 0)[..., None], alpha])
    Image.fromarray(stored).save(tmp_path / "transparent.png")
    shown = patch_files.read_image(tmp_path / "transparent.png", SIZE)
    assert (shown[:, :4] == 255).all()
    np.testing.assert_array_equal(shown[:, 4:], pixels[:, 4:])
