"""data/pictures.py: what is opened, what is refused, and the pixels."""

import os
import re
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import EpsImagePlugin, Image

from data import pictures
from tests.data.png_writer import make_chunk, make_png, make_rows
from wsss_jax.errors import InputError

ROOT = Path(__file__).parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
ALL = pictures.REGION_FORMATS


def read(path, formats=ALL):
    with pictures.open_picture(path, formats) as picture:
        return pictures.lay_on_white(pictures.turn_upright(picture))


def refused(path, formats=ALL) -> str:
    with pytest.raises(InputError) as caught, pictures.open_picture(path, formats):
        pass
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    return message


@pytest.mark.parametrize("formats", [pictures.PATCH_FORMATS, pictures.REGION_FORMATS])
def test_postscript_by_another_name_starts_no_program(tmp_path, monkeypatch, formats):
    def started(*_, **__):
        raise AssertionError("a decoder was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    (tmp_path / "a.png").write_bytes(EPS)
    assert f"damaged, or not a {' or '.join(formats)} picture" in refused(
        tmp_path / "a.png", formats
    )


def test_pictures_are_opened_with_named_formats_only():
    """Outside `data/pictures.py`; `docs/serve.py` needs nothing of this package."""
    allowed = {"data/pictures.py", "docs/serve.py"}
    for folder in ("data", "wsss_jax", "docs", "configs", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            name, source = path.relative_to(ROOT).as_posix(), path.read_text()
            assert name in allowed or "Image.open(" not in source, name
            assert not re.search(r"\b(cv2|plt|mpimg)\.imread", source), name
    for name in allowed:
        calls = re.findall(r"[^`]Image\.open\(([^)]*)\)", (ROOT / name).read_text())
        assert calls and all("formats=" in arguments for arguments in calls)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.png"))
        for name, kind in (("pipe", "a named pipe"), ("folder", "a folder"), ("s", "a socket")):
            assert f"{kind}, not a file" in refused(tmp_path / f"{name}.png")
    assert "No such file" in refused(tmp_path / "none.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    assert "a device, not a file" in refused(tmp_path / "link.png")


@pytest.mark.parametrize("side", [20000, 2**31 - 1, 2**32 - 1])
def test_false_sizes_take_no_memory(tmp_path, side):
    path = tmp_path / "huge.png"
    path.write_bytes(make_png(side, side, b"\0" * 100))
    assert "too many pixels" in refused(path)
    path.write_bytes(make_png(13000, 13000, b"\0" * 100))
    assert "only 0% of its pixels" in refused(path)
    jpeg = tmp_path / "small.jpg"
    Image.new("RGB", (13000, 13000)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:4096])
    assert "13000 x 13000 pixels do not fit in the file" in refused(jpeg)


def test_no_pixels(tmp_path):
    for size in ((0, 5), (5, 0)):
        (tmp_path / "none.png").write_bytes(make_png(*size, b""))
        assert "damaged, or not a" in refused(tmp_path / "none.png")


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colors_of_16_bits_are_refused(tmp_path, color, channels):
    """Pillow keeps the upper 8: values of 0 to 255 would be black."""
    pixels = np.full((4, 4 * channels), 200, ">u2")
    (tmp_path / "deep.png").write_bytes(make_png(4, 4, make_rows(pixels), bits=16, color=color))
    assert "16 bits per channel; save it with 8" in refused(tmp_path / "deep.png")


def test_gray_of_16_bits_keeps_its_mode(tmp_path):
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "gray.png")
    with pictures.open_picture(tmp_path / "gray.png", ALL) as picture:
        assert picture.mode == "I;16" and picture.info["bits"] == 16


def test_tiff_of_16_bits(tmp_path):
    deep = np.full((4, 4, 3), 200, np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    assert "16 bits per channel" in refused(tmp_path / "deep.tif")
    tifffile.imwrite(tmp_path / "fine.tif", deep.astype(np.uint8), photometric="rgb")
    assert (read(tmp_path / "fine.tif") == 200).all()


def test_a_tiff_without_its_size(tmp_path):
    """The tag of the width of the first page, then of the second, says something else."""
    pages = [Image.new("RGB", (8, 8))] * 2
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    content = (tmp_path / "a.tif").read_bytes()
    width = b"\x00\x01\x04\x00\x01\x00\x00\x00\x08\x00\x00\x00"
    assert content.count(width) == 2
    for place in (content.index(width), content.rindex(width)):
        (tmp_path / "a.tif").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert "damaged, or not a" in refused(tmp_path / "a.tif")


def test_one_picture_in_a_file(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    for name in ("moving.png", "pages.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "3 pictures in one file; save the one to use" in refused(tmp_path / name)
    frames[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(read(tmp_path / "phone.jpg") - np.float32([255, 0, 0])).max() < 5
    frames[0].save(tmp_path / "still.png", save_all=True)
    assert (read(tmp_path / "still.png") == (255, 0, 0)).all()


def test_smaller_copies_do_not_count_as_pictures(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.full((8, 8, 3), 9, np.uint8), photometric="rgb")
        file.write(np.zeros((4, 4, 3), np.uint8), photometric="rgb", subfiletype=1)
    assert (read(tmp_path / "a.tif") == 9).all()
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(np.full((8, 8, 3), 9, np.uint8), photometric="rgb")
        file.write(np.zeros((8, 8, 3), np.uint8), photometric="rgb")
        file.write(np.zeros((4, 4, 3), np.uint8), photometric="rgb", subfiletype=1)
    assert "2 pictures in one file" in refused(tmp_path / "b.tif")


# What viewers make of stored pixels, by EXIF orientation.
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_pictures_are_upright(tmp_path, suffix):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8], stored[:, :8] = (200, 0, 0), (0, 0, 200)
    for orientation, turn in UPRIGHT.items():
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        options = {"quality": 98, "subsampling": 0} if suffix == "jpg" else {}
        Image.fromarray(stored).save(path, exif=exif, **options)
        shown, expected = read(path), turn(stored)
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).max() <= (5 if suffix == "jpg" else 0)


def transparent() -> dict[str, bytes]:
    """Two pixels, the first of them transparent, as every kind of PNG can say it."""
    palette = make_chunk(b"PLTE", bytes([0, 0, 0, 60, 60, 60]))
    return {
        "RGBA": make_png(2, 1, b"\0" + bytes([0, 0, 0, 0, 60, 60, 60, 255]), color=6),
        "LA": make_png(2, 1, b"\0" + bytes([0, 0, 60, 255]), color=4),
        "RGB": make_png(
            2,
            1,
            b"\0" + bytes([9, 8, 7, 60, 60, 60]),
            color=2,
            extra=make_chunk(b"tRNS", b"\0\t\0\b\0\a"),
        ),
        "gray": make_png(2, 1, b"\0" + bytes([9, 60]), extra=make_chunk(b"tRNS", b"\0\t")),
        "palette": make_png(
            2, 1, b"\0" + bytes([0, 1]), color=3, extra=palette + make_chunk(b"tRNS", b"\0")
        ),
    }


@pytest.mark.parametrize("kind", ["RGBA", "LA", "RGB", "gray", "palette"])
def test_transparent_pixels_are_white(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(transparent()[kind])
    assert read(tmp_path / "a.png").tolist() == [[[255] * 3, [60] * 3]]


@pytest.mark.parametrize("bits", [2, 4])
def test_a_transparent_gray_value_of_few_bits(tmp_path, bits):
    stored = bytes([0, (1 << (8 - bits)) | (2 << (8 - 2 * bits))])  # the values 1 and 2
    content = make_png(2, 1, stored, bits=bits, extra=make_chunk(b"tRNS", b"\0\1"))
    (tmp_path / "a.png").write_bytes(content)
    assert read(tmp_path / "a.png")[0, :, 0].tolist() == [255, 2 * 255 // (2**bits - 1)]


def test_tiff_with_wrong_offsets(tmp_path):
    """As GDAL writes files with holes: Pillow would show the header of the file as tissue."""
    picture = np.full((64, 64, 3), 120, np.uint8)
    for options in ({"tile": (16, 16)}, {"rowsperstrip": 16}):
        tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", **options)
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
            tag = file.pages[0].tags["TileOffsets" if "tile" in options else "StripOffsets"]
            tag.overwrite([0, *tag.value[1:]])
        assert "some of its pixels are not in the file" in refused(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "s.tif", picture[..., 0].astype(np.int8))
    assert "its colors are signed numbers" in refused(tmp_path / "s.tif")


def test_a_palette_picture_without_its_palette(tmp_path):
    (tmp_path / "p.png").write_bytes(make_png(2, 2, b"\0\0\0" * 2, color=3))
    with (
        pytest.raises(InputError, match="damaged, or not a"),
        pictures.open_picture(tmp_path / "p.png", ALL) as picture,
    ):
        pictures.lay_on_white(picture)
