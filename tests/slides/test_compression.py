"""Tiles and pictures with missing parts, or with another size in their own header."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from data.synthetic_slides import Style, draw_waves, write_arrays
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import compression
from wsss_jax.slides.reading.slide import open_slide

END = b"\xff\xd9"
_NOISE = np.random.default_rng(0).integers(-9, 9, (480, 640, 3))
GRAINY = (draw_waves(640, 480).astype(int) + _NOISE).clip(0, 255).astype(np.uint8)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _cut_before_end(data: bytes) -> bytes:
    return data[: len(data) // 2] + END


def _zero_end(data: bytes) -> bytes:
    return _cut(data).ljust(len(data), b"\0")


def _zero_middle(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes(64) + data[half + 64 :]


DAMAGES = (_cut, _cut_before_end, _zero_end, _zero_middle)


def _change_first_tile(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes the bytes of the first tile of the first page, and their count."""
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
        file.filehandle.seek(offsets[0])
        data = change(file.filehandle.read(counts[0]))
        if len(data) <= counts[0]:
            file.filehandle.seek(offsets[0])
        else:
            offsets[0] = file.filehandle.seek(0, 2)
        counts[0] = len(data)
        file.filehandle.write(data)
        page.tags["TileOffsets"].overwrite(offsets)
        page.tags["TileByteCounts"].overwrite(counts)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("style", "name"), [("aperio", "a.svs"), ("generic", "g.tif"), ("ome", "o.ome.tif")]
)
def test_a_damaged_jpeg_tile_is_named(tmp_path, damage, style: Style, name):
    write_arrays(tmp_path / name, [GRAINY], 0.5, style, "jpeg")
    whole = open_slide(tmp_path / name).read(0, 0, 0, 640, 480)
    assert np.abs(whole.astype(int) - GRAINY).mean() < 5
    _change_first_tile(tmp_path / name, damage)
    slide = open_slide(tmp_path / name)
    with pytest.raises(InputError, match=r"at x 0, y 0 of level 0 \(a (tile|part) .*; copy the"):
        slide.read(0, 0, 0, 100, 100)
    np.testing.assert_array_equal(slide.read(0, 300, 0, 340, 480), whole[:, 300:])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_jpeg_tile_with_tables_in_the_header_is_named(tmp_path, damage):
    image = GRAINY.copy()
    image[:, 256:512] = 244  # glass, which is all zeros in JPEG's code
    path = tmp_path / "t.tif"
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "photometric": "YCBCR"}
    shape = {"width": 640, "height": 480, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", "GTiff", compress="JPEG", **shape, **options) as file:
        file.write(image.transpose(2, 0, 1))
    whole = open_slide(path, 0.5).read(0, 0, 0, 640, 480)
    assert np.abs(whole.astype(int) - image).mean() < 5
    _change_first_tile(path, damage)
    with pytest.raises(InputError, match=r"at x 0, y 0 of level 0 \(a (tile|part) .*; copy the"):
        open_slide(path, 0.5).read(0, 0, 0, 100, 100)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_blank_tiles_pass(optimize, progressive):
    for image in (np.full((256, 256, 3), 244, np.uint8), GRAINY[:256, :256]):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", optimize=optimize, progressive=progressive)
        for padding in (b"", b"\0", b"\0\0\0"):
            data = file.getvalue() + padding
            compression.check_claim(data, tifffile.COMPRESSION.JPEG, (256, 256), (256, 256))
            compression.check_jpeg_tile(data, None, imagecodecs.jpeg_decode(data))


@pytest.mark.parametrize("damage", [_cut, _zero_end])
def test_a_damaged_jpeg_2000_tile_is_named(tmp_path, damage):
    path = tmp_path / "j.tif"
    tifffile.imwrite(path, GRAINY, photometric="rgb", tile=(256, 256), compression="jpeg2000")
    _change_first_tile(path, damage)
    with pytest.raises(InputError, match=r"at x 0, y 0 .*\(a tile without its end\); copy"):
        open_slide(path, 0.5).read(0, 0, 0, 100, 100)


def _claim_jpeg(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 30000, 30000) + data[at + 4 :]


def _claim_jpeg_2000(data: bytes) -> bytes:
    at = data.index(b"\xff\x51") + 6
    return data[:at] + struct.pack(">II", 30000, 30000) + data[at + 8 :]


def _claim_png(data: bytes) -> bytes:
    header = b"IHDR" + struct.pack(">II", 30000, 30000) + data[24:29]
    return data[:12] + header + struct.pack(">I", imagecodecs.zlib_crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("name", "claim"),
    [("jpeg", _claim_jpeg), ("jpeg2000", _claim_jpeg_2000), ("png", _claim_png)],
)
def test_tiles_that_claim_to_be_huge_are_not_decoded(tmp_path, monkeypatch, name, claim):
    path = tmp_path / "c.tif"
    tifffile.imwrite(path, GRAINY, photometric="rgb", tile=(256, 256), compression=name)
    assert np.abs(open_slide(path, 0.5).read(0, 0, 0, 640, 480).astype(int) - GRAINY).mean() < 5
    _change_first_tile(path, claim)
    slide = open_slide(path, 0.5)
    for decoder in ("jpeg_decode", "jpeg2k_decode", "png_decode"):
        monkeypatch.setattr(imagecodecs, decoder, None)
    with pytest.raises(InputError, match=r"a tile of 30000 x 30000 pixels instead of 256 x 256\)"):
        slide.read(0, 0, 0, 100, 100)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_jpeg_picture_is_refused(tmp_path, progressive):
    path, exif = tmp_path / "p.jpg", Image.Exif()
    exif[274] = 3
    Image.fromarray(GRAINY).save(path, quality=90, progressive=progressive, exif=exif)
    assert open_slide(path, 0.5).width == 640
    path.write_bytes(_cut_before_end(path.read_bytes()))
    with pytest.raises(InputError, match=r"p\.jpg: damaged .*part of the JPEG is missing.*; copy"):
        open_slide(path, 0.5)
