"""TIFF files whose headers claim more than the file holds."""

import struct
from pathlib import Path

import pytest
import tifffile

from data.synthetic_slides import write_arrays
from tests.slides.tiff_writer import APERIO, WAVES, make_image, write_ome, write_tiff
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import tiff_headers
from wsss_jax.slides.reading.slide import open_slide

TYPES = {3: "H", 4: "I"}  # of tags, as struct writes them
LARGE = 2**31 - 1


def _write_header(path: Path, circle: bool = False, description: bytes = b"", **changes) -> Path:
    """Writes a file of 4 KB: one page of 512 x 512 pixels in four tiles, with changed tags."""
    tags = {
        "256": (4, [512]),
        "257": (4, [512]),
        "258": (3, [8, 8, 8]),
        "259": (3, [1]),
        "262": (3, [2]),
        "277": (3, [3]),
        "284": (3, [1]),
        "322": (4, [256]),
        "323": (4, [256]),
        "324": (4, [2048] * 4),
        "325": (4, [1024] * 4),
    }
    tags |= {tag.removeprefix("t"): value for tag, value in changes.items()}
    if description:
        tags["270"] = 2, list(description + b"\0")
    entries, extra, start = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, values, *claimed) in sorted(tags.items(), key=lambda item: int(item[0])):
        data = struct.pack(f"<{len(values)}{TYPES.get(kind, 'B')}", *values)
        if len(data) > 4 or claimed:
            data, extra = struct.pack("<I", start + len(extra)), extra + data
        count = claimed[0] if claimed else len(values)
        entries += struct.pack("<HHI", int(tag), kind, count) + data.ljust(4, b"\0")
    following = struct.pack("<I", 8 if circle else 0)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + following + extra
    path.write_bytes(content.ljust(4096, b"\0"))
    return path


OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>'
    '<Pixels DimensionOrder="XYCZT" Type="uint8" SizeX="512" SizeY="512" SizeC="1" {}</Pixels>'
    "</Image></OME>"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t256": (4, [LARGE]), "t257": (4, [LARGE])}, "which no slide has"),
        ({"t256": (4, [2**21]), "t257": (4, [2**21])}, "which no slide has"),
        ({"t256": (4, [LARGE]), "t257": (4, [LARGE]), "description": APERIO}, "no slide has"),
        ({"t256": (4, [65536]), "t257": (4, [4096])}, "its table of tiles is cut short"),
        # OpenSlide would end the process over these.
        ({"t322": (4, [LARGE]), "t323": (4, [LARGE])}, "need too much memory"),
        ({"t322": (4, [LARGE]), "t323": (4, [LARGE]), "description": APERIO}, "too much memory"),
        ({"t277": (3, [65535])}, "need too much memory"),
        ({"t277": (3, [0])}, "damaged"),
        ({"t322": (4, [0]), "t323": (4, [0])}, "tiles of "),
        ({"t256": (4, [0]), "t257": (4, [0])}, "an image of 0 x 0 pixels"),
        ({"t324": (4, [LARGE] * 4)}, "cut short"),
        ({"t324": (4, [2048] * 4, 2**30)}, "copy the slide again"),
        ({"t325": (4, [0] * 4)}, "without any data"),
        # OpenSlide would end the process over this, too.
        ({"t325": (4, [1024] * 3 + [LARGE])}, "cut short"),
        ({"t325": (4, [1024] * 3 + [LARGE]), "description": APERIO}, "cut short"),
        ({"t259": (3, [22610])}, "compressed as JPEGXR_NDPI, which cannot be read; convert"),
        ({"t259": (3, [22610]), "description": APERIO}, "compressed as JPEGXR"),
        ({"t259": (3, [4711])}, "; convert it|damaged"),
        ({"circle": True}, "lead in a circle"),
        ({"description": b"ImageJ=1.53\nimages=2000000000\nhyperstack=true\n"}, "planes; save"),
        ({"description": OME.format('SizeZ="99999" SizeT="99999">').encode()}, "planes; save"),
        (
            {
                "description": OME.format(
                    'SizeZ="1" SizeT="1"><TiffData PlaneCount="2000000000"/>'
                ).encode()
            },
            "planes; save",
        ),
    ],
)
def test_headers_that_claim_too_much_are_refused(tmp_path, changes, message, monkeypatch):
    path = _write_header(tmp_path / "x.tif", **changes)

    def refuse(*_: object) -> None:
        raise AssertionError("read as OpenSlide does")

    monkeypatch.setattr("openslide.OpenSlide.read_region", refuse)
    with pytest.raises(InputError, match=rf"x\.tif: .*{message}") as caught:
        open_slide(path, 0.5)
    assert "\n" not in str(caught.value)


def test_headers_of_subifds_are_checked(tmp_path):
    write_arrays(tmp_path / "o.ome.tif", [WAVES, WAVES[::2, ::2]], 0.5, "ome")
    sound = (tmp_path / "o.ome.tif").read_bytes()
    for tag, value, message in (
        ("TileLength", 50_331_904, "need too much memory"),
        ("TileByteCounts", 2**40, "cut short"),
        ("ImageWidth", 2**30, "which no slide has"),
    ):
        path = tmp_path / f"{tag}.ome.tif"
        path.write_bytes(sound)
        with tifffile.TiffFile(path, mode="r+") as file:
            (level,) = file.pages[0].pages
            old = level.tags[tag]
            old.overwrite((value,) * old.count if old.count > 1 else value, dtype=16)
        with pytest.raises(InputError, match=rf"{tag}\.ome\.tif: .*{message}"):
            open_slide(path)


def test_too_many_planes_and_pages_are_refused(tmp_path, monkeypatch):
    image = make_image("<TiffData/>").replace('SizeZ="1"', 'SizeZ="30000"')
    with pytest.raises(InputError, match=r"many\.ome\.tif: 90,000 planes; save it"):
        open_slide(write_ome(tmp_path / "many.ome.tif", 3 * image))
    path = write_tiff(tmp_path / "pages.tif", *[(WAVES, {})] * 4)
    assert len(open_slide(path).warnings) == 1
    monkeypatch.setattr(tiff_headers, "MAX_PAGES", 3)
    with pytest.raises(InputError, match=r"pages\.tif: over 3 pages; save the slide as"):
        open_slide(path)


def test_an_intact_header_of_the_same_kind_opens(tmp_path):
    assert open_slide(_write_header(tmp_path / "x.tif"), 0.5).levels[0].width == 512
