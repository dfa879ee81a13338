"""No tile of a slide is decoded twice while its map is made."""

import errno
import os

import numpy as np
import pytest

from benchmarks import reading
from data.synthetic_slides import TILE
from wsss_jax.slides.mapping.parts import Layout
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.slides.reading import block_file, tiff
from wsss_jax.slides.reading import view as view_module
from wsss_jax.slides.reading.block_file import open_block_file
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View

TILING = Tiling(56, 48, "flat", 16)
WIDTH, STRIP = 2 * 2048 + 700, 2048


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes all lengths a fourth of the program's; caches hold as many rows of a strip."""
    monkeypatch.setattr(view_module, "BLOCK", view_module.BLOCK // 4)
    monkeypatch.setattr(view_module, "_SOURCE", view_module._SOURCE // 4)
    monkeypatch.setattr(view_module, "CACHE_BYTES", view_module.CACHE_BYTES // 16)
    # A row of blocks has a fourth of the slide's tiles across, but those are as high as ever.
    monkeypatch.setattr(tiff, "SEGMENT_BYTES", tiff.SEGMENT_BYTES // 4)


@pytest.mark.parametrize("ratio, height", [(2, 1700), (3.96, 850), (4, 850)])
def test_no_tile_of_three_strips_is_decoded_twice(tmp_path, small_blocks, ratio, height):
    path = tmp_path / "s.tif"
    size = reading.write_slide(path, WIDTH, height, ratio)
    decodes, tiles = reading.read_slide(path, size, TILING, Layout(WIDTH, height, STRIP, 256)).map
    columns, rows = (-(-length // TILE) for length in size)
    assert columns * rows - 30 < tiles  # the checks on opening decoded the others
    # Where tiles of the slide lie across the ends of blocks, one column of them is decoded again
    # for each border of strips. Without shared columns it is 1.06 to 1.22 times as many.
    assert decodes <= 1.03 * tiles


def test_shared_columns_have_the_same_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(view_module, "BLOCK", 64)
    monkeypatch.setattr(view_module, "CACHE_BYTES", 2 * 64 * 64 * 3)
    reading.write_slide(tmp_path / "s.tif", 500, 300, 2)
    with open_slide(tmp_path / "s.tif") as slide:
        expected = View(slide, 1.0).read(0, 0, 500, 300)
        view, made = View(slide, 1.0), []
        read_block = view_module.read_block
        monkeypatch.setattr(
            view_module, "read_block", lambda *a: made.append(a[2:]) or read_block(*a)
        )
        with view.share_columns([(180, 270)], tmp_path):
            for x0, x1 in ((0, 270), (180, 500)):
                np.testing.assert_array_equal(view.read(x0, 0, x1 - x0, 300), expected[:, x0:x1])
        assert len(set(made)) == len(made) == 8 * 5  # each once, though few fit into the cache
    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"]


def _draw(seed: int, height: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, 4, 3), np.uint8)


def test_a_block_file_gives_each_array_once_and_uses_its_space_again(tmp_path):
    with open_block_file(tmp_path, 36) as file:
        for number in range(3):
            file.put((number, 0), _draw(number))
        np.testing.assert_array_equal(file.take((1, 0)), _draw(1))
        assert file.take((1, 0)) is None
        file.put((7, 0), _draw(7, height=2)[:, ::-1])  # smaller, and not contiguous
        for number in (0, 2):
            np.testing.assert_array_equal(file.take((number, 0)), _draw(number))
        np.testing.assert_array_equal(file.take((7, 0)), _draw(7, height=2)[:, ::-1])
        assert os.fstat(file._file).st_size == 3 * 36
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_only_time(tmp_path, monkeypatch):
    def write(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_block_file(tmp_path, 36) as file:
        file.put((0,), _draw(0))
        with monkeypatch.context() as patch:
            patch.setattr(block_file.os, "pwrite", write)
            file.put((1,), _draw(1))
            patch.setattr(block_file.os, "pwrite", lambda *_: 5)  # the rest did not fit
            file.put((2,), _draw(2))
        with monkeypatch.context() as patch:  # the rest of the disk is left to results
            patch.setattr(block_file, "_LEFT_FREE", 1 << 80)
            file.put((4,), _draw(4))
            file.put((5,), _draw(5))
        np.testing.assert_array_equal(file.take((4,)), _draw(4))  # in the space that failed
        assert file.take((5,)) is None
        assert file.take((1,)) is None and file.take((2,)) is None
        np.testing.assert_array_equal(file.take((0,)), _draw(0))
