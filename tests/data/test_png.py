"""data/png.py: complete and damaged PNG files, made chunk by chunk."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from data import png
from tests.data.png_writer import make_png, make_rows


def check(content: bytes) -> None:
    png.check_pixels(io.BytesIO(content))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_files_of_pillow_are_complete(mode):
    for size in ((7, 5), (300, 200)):
        file = io.BytesIO()
        Image.effect_noise(size, 90).convert(mode).save(file, format="PNG")
        png.check_pixels(file)
        header = png.read_header(file)
        assert (header.width, header.height) == size
        assert header.bits == {"1": 1, "I;16": 16}.get(mode, 8)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (5, 9), (8, 8)])
def test_interlaced_files_are_complete(width, height):
    """Of one gray value, so that the order of the pixels does not matter."""
    size = sum(
        len(range(top, height, down)) * (1 + len(range(left, width, across)))
        for left, top, across, down in [
            *[(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)],
            *[(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)],
        ]
        if left < width
    )
    content = make_png(width, height, bytes(size), interlaced=True)
    check(content)
    assert Image.open(io.BytesIO(content)).size == (width, height)
    with pytest.raises(ValueError, match="of its pixels are there"):
        check(make_png(width, height, bytes(size - 1), interlaced=True))
    with pytest.raises(ValueError, match="more pixels than"):
        check(make_png(width, height, bytes(size + 1), interlaced=True))


def test_missing_and_extra_rows():
    """The checksums are right; Pillow shows missing rows black and ignores extra ones."""
    whole = make_rows(np.full((8, 8), 200, np.uint8))
    check(make_png(8, 8, whole))
    with pytest.raises(ValueError, match="only 25% of its pixels are there"):
        check(make_png(8, 8, whole[:18]))
    with pytest.raises(ValueError, match="more pixels than its header says"):
        check(make_png(8, 8, whole + whole[:9]))
    with pytest.raises(ValueError, match="more pixels than its header says"):
        check(make_png(8, 8, b"", compressed=zlib.compress(whole) + b"more"))
    with pytest.raises(ValueError, match="only 100% of its pixels"):
        check(make_png(8, 8, b"", compressed=zlib.compress(whole)[:-1]))
    with pytest.raises(ValueError, match="damaged pixels"):
        check(make_png(8, 8, b"", compressed=zlib.compress(whole)[:-4] + b"\0\0\0\0"))


def test_damaged_files():
    content = make_png(8, 8, make_rows(np.zeros((8, 8), np.uint8)))
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"the file is truncated|no PNG header"):
            check(content[:length])
    for place in (20, 45, len(content) - 2):
        changed = bytes([content[place] ^ 1])
        with pytest.raises(ValueError, match=r"wrong checksum|damaged pixels|% of its pixels"):
            check(content[:place] + changed + content[place + 1 :])


def test_pixels_without_end_take_no_memory():
    content = make_png(64, 64, bytes(2**27))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more pixels than its header says"):
        check(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (224, 224), (300, 200)])
def test_what_is_encoded_is_what_pillow_decodes(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for each in (image, image // 200, image[::-1, ::-1]):
        content = png.encode(each)
        check(content)
        with Image.open(io.BytesIO(content)) as decoded:
            assert decoded.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(decoded), each)


def test_encoded_photographs_are_as_small_as_those_of_pillow():
    image = np.asarray(Image.effect_noise((200, 200), 40).resize((400, 400)).convert("RGB"))
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    assert len(png.encode(image)) < 1.1 * len(file.getvalue())
