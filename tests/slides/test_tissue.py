"""Tissue detected on overviews, read from mask files, and stretched over a slide."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from data.synthetic_slides import draw_section
from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.tissue import Tissue, detect_tissue, read_mask

SETTINGS = {"threshold": "otsu", "closing": 50.0, "min_tissue": 50_000.0, "min_hole": 50_000.0}
TILES = Path(__file__).parents[3] / "shared" / "data" / "tiles"


def _draw_noise(color: tuple[int, int, int], spread: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(color, spread, (200, 300, 3))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("overview", "share"),
    [
        (_draw_noise((242, 242, 242), 2), 0),  # glass
        (_draw_noise((225, 223, 218), 2), 0),  # yellowish glass
        (_draw_noise((255, 255, 255), 0), 0),
        (_draw_noise((2, 2, 2), 2), 0),  # not scanned
        (_draw_noise((200, 130, 170), 12), 1),  # tissue alone
        (_draw_noise((235, 205, 222), 4), 1),  # pale tissue alone
    ],
)
def test_glass_alone_and_tissue_alone(overview, share):
    assert detect_tissue(overview, 8.0, **SETTINGS).mean() == share


def test_tissue_on_glass():
    section = draw_section(256, 256).draw_tile(0, 0)
    truth = np.pad((section < 244).any(axis=-1), 40)
    overview = np.pad(section, ((40, 40), (40, 40), (0, 0)), constant_values=244)
    for threshold in ("otsu", 15):
        detected = detect_tissue(overview, 8.0, **SETTINGS | {"threshold": threshold})
        assert (detected != truth).mean() < 0.01


def test_sizes_are_in_micrometers():
    overview = np.full((200, 200, 3), 244, np.uint8)
    overview[20:150, 20:150] = (200, 130, 170)
    overview[60:70, 60:70] = 244  # a hole of 100 pixels
    overview[170:180, 170:180] = (200, 130, 170)  # and a crumb
    overview[100:104, :] = 244  # a gap of 4 pixels

    def detect(mpp, **changes):
        return detect_tissue(
            overview,
            mpp,
            threshold="otsu",
            **{k: 0.0 for k in SETTINGS if k != "threshold"} | changes,
        )

    plain = detect(10.0)
    assert not plain[65, 65] and plain[175, 175] and not plain[102, 80]
    assert detect(10.0, min_hole=11_000.0)[65, 65] and not detect(10.0, min_hole=9_000.0)[65, 65]
    assert (
        not detect(10.0, min_tissue=11_000.0)[175, 175]
        and detect(10.0, min_tissue=9_000.0)[175, 175]
    )
    assert detect(10.0, closing=30.0)[102, 80] and not detect(30.0, closing=30.0)[102, 80]
    assert not detect(10.0, closing=200.0)[102, 195]  # glass does not close with the border


def test_glass_at_the_border_is_not_a_hole():
    """A core of a tissue microarray that touches the borders of its picture, 640 µm across."""
    y, x = np.mgrid[:160, :160] + 0.5 - 80
    core = x**2 + y**2 <= 80**2
    overview = np.where(core[..., None], np.uint8([200, 130, 170]), np.uint8(244))
    detected = detect_tissue(overview, 4.0, **SETTINGS)
    assert (
        abs(int(detected.sum()) - int(core.sum())) < 300
        and not detected[0, 0]
        and not detected[-1, -1]
    )
    overview[70:80, 70:80] = 244  # this one is a hole
    overview[0:2, 80:82] = 244  # and this noise
    np.testing.assert_array_equal(detect_tissue(overview, 4.0, **SETTINGS), detected)
    # Inside a larger picture the same glass surrounds the tissue, as before.
    around = np.pad(overview, ((40, 40), (40, 40), (0, 0)), constant_values=244)
    inside = detect_tissue(around, 4.0, **SETTINGS)[40:-40, 40:-40]
    assert (inside != detected).mean() < 0.01


def test_invalid_thresholds_are_refused():
    tissue = _draw_noise((200, 130, 170), 12)
    message = r"config\.tissue\.threshold is .*: set otsu or a saturation"
    for threshold in ("triangle", -1, 300, float("nan")):
        with pytest.raises(InputError, match=message):
            detect_tissue(tissue, 8.0, **SETTINGS | {"threshold": threshold})


def test_masks_are_read_from_files(tmp_path):
    mask = np.zeros((30, 40), bool)
    mask[5:20, 10:30] = True
    gray = Image.fromarray(mask.astype(np.uint8))
    palette = gray.copy()
    palette.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white, and yet not tissue
    color = np.dstack([mask * 0, mask * 200, mask * 0, mask * 0 + 255]).astype(np.uint8)
    images = {
        "gray": gray,
        "bits": Image.fromarray(mask),
        "palette": palette,
        "color": Image.fromarray(color),
        "deep": Image.fromarray(mask.astype(np.uint16) * 1000),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), mask, err_msg=name)
    for name, image in images.items():  # of other formats, whatever the name says
        if name != "palette":
            image.save(tmp_path / "x.png", format="TIFF")
            np.testing.assert_array_equal(read_mask(tmp_path / "x.png"), mask, err_msg=name)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(mask).astype(np.uint8)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "turned.png"), mask)
    # Slides in TIFF are not turned, so their masks are not turned either.
    gray.save(tmp_path / "stored.png", format="TIFF", tiffinfo={274: 1})
    np.testing.assert_array_equal(read_mask(tmp_path / "stored.png"), mask)
    gray.save(tmp_path / "turned_tiff.png", format="TIFF", tiffinfo={274: 3})
    with pytest.raises(
        InputError, match=r"turned_tiff\.png: its Orientation tag \(3\) .*; save it"
    ):
        read_mask(tmp_path / "turned_tiff.png")
    for bits in (2, 4):  # per gray pixel; 1 is tissue
        _write_gray(tmp_path / "few.png", mask, bits)
        np.testing.assert_array_equal(read_mask(tmp_path / "few.png"), mask)
    cv2.imwrite(str(tmp_path / "color16.png"), np.dstack([mask] * 3).astype(np.uint16))
    with pytest.raises(InputError, match=r"color16\.png: 16 bits per channel; save it with 8"):
        read_mask(tmp_path / "color16.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: a named pipe"):
        read_mask(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"none\.png: no such tissue mask; correct"):
        read_mask(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    cut = (tmp_path / "color.png").read_bytes()[:90]
    (tmp_path / "cut.png").write_bytes(cut)
    message = r"\.png: damaged, or not a PNG or JPEG or TIFF picture .*; copy it again"
    for name in ("text", "cut"):
        with pytest.raises(InputError, match=name + message):
            read_mask(tmp_path / f"{name}.png")


def _write_gray(path: Path, mask: np.ndarray, bits: int) -> None:
    """Writes a gray PNG of less than 8 bits, which Pillow does not."""
    height, width = mask.shape
    values = mask.astype(np.uint8)[..., None] >> np.arange(bits - 1, -1, -1) & 1
    rows = np.packbits(values.reshape(height, -1), axis=1)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    content = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))


MASKS = st_numpy.arrays(bool, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(max_examples=60, deadline=None)
@given(
    MASKS,
    st.tuples(*[st.integers(1, 30)] * 2),
    st.tuples(*[st.integers(-5, 32)] * 2),
    st.tuples(*[st.integers(1, 20)] * 2),
)
def test_a_stretched_mask_is_exact(mask, size, corner, region):
    tissue = Tissue(mask, *size)
    width, height = size
    rows = ((np.arange(height) + 0.5) / height * mask.shape[0]).astype(int)
    columns = ((np.arange(width) + 0.5) / width * mask.shape[1]).astype(int)
    whole = mask[rows][:, columns]
    assert tissue.count_pixels() == whole.sum()
    padded = np.zeros((70, 70), bool)
    padded[5 : 5 + height, 5 : 5 + width] = whole
    x, y = corner
    expected = padded[y + 5 : y + 5 + region[1], x + 5 : x + 5 + region[0]]
    np.testing.assert_array_equal(tissue.read(*corner, *region), expected)
    assert tissue.has_tissue(*corner, *region) == expected.any()


@settings(max_examples=60, deadline=None)
@given(
    MASKS,
    st.tuples(*[st.integers(1, 30)] * 2),
    st.tuples(*[st.floats(-3, 25)] * 2),
    st.tuples(*[st.floats(0.5, 30)] * 2),
    st.tuples(*[st.integers(-3, 30)] * 2),
    st.tuples(*[st.integers(1, 20)] * 2),
)
def test_a_mask_may_cover_a_part_of_the_slide(mask, size, start, extent, corner, region):
    """Each working pixel has the value of the mask under its center, none around the part."""
    width, height = size
    whole = np.zeros((height, width), bool)
    for j in range(height):
        for i in range(width):
            y = np.floor((j + 0.5 - start[1]) / extent[1] * mask.shape[0])
            x = np.floor((i + 0.5 - start[0]) / extent[0] * mask.shape[1])
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
                whole[j, i] = mask[int(y), int(x)]
    tissue = Tissue(mask, width, height, (*start, *extent))
    assert tissue.count_pixels() == whole.sum()
    np.testing.assert_array_equal(tissue.read(0, 0, width, height), whole)
    (x, y), (wide, tall) = corner, region
    part = whole[max(y, 0) : max(y + tall, 0), max(x, 0) : max(x + wide, 0)]
    assert tissue.has_tissue(x, y, wide, tall) == part.any()


def test_tissue_everywhere_needs_no_memory():
    tissue = Tissue.everywhere(60_000, 50_000)
    assert tissue.count_pixels() == 3_000_000_000
    assert tissue.has_tissue(59_999, 49_999, 10, 10) and not tissue.has_tissue(60_000, 0, 10, 10)
    assert tissue.read(59_990, -5, 20, 10).sum() == 50


@pytest.mark.skipif(not TILES.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("almost-white-1", 0, 0),
        ("almost-white-2", 0, 0.05),
        ("no-tissue", 0, 0),
        ("no-tissue2", 0, 0),
        ("no-tissue-line", 0, 0),
        ("very-low-nuclei-score-level0", 1, 1),
        ("medium-nuclei-score-level1-2", 1, 1),
        ("high-nuclei-score-level2", 0.1, 0.2),
        ("tissue-level0-7352-11762-7864-12274", 0.8, 0.95),
    ],
)
def test_tissue_of_real_tiles(name, low, high):
    tile = cv2.imread(str(TILES / f"{name}.png"))[..., ::-1]
    overview = cv2.resize(np.ascontiguousarray(tile), (64, 64), interpolation=cv2.INTER_AREA)
    small = {"min_tissue": 5000.0, "min_hole": 5000.0}
    assert low <= detect_tissue(overview, 8.0, **SETTINGS | small).mean() <= high
