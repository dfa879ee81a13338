"""Which pages of a TIFF file are the slide, which samples are colors, and false headers."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.slides.made_slides import smooth, write_arrays
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import tiff, tiff_headers
from wsss_jax.slides.reading.reading import View, open_slide

TILED = {"tile": (256, 256), "compression": "deflate", "metadata": None}
HALF = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 µm
WAVES = smooth(640, 480)
APERIO = b"Aperio Image Library v1\r\n|MPP = 0.5"


def _write(path: Path, *pages: tuple[np.ndarray, dict], **options) -> Path:
    with tifffile.TiffWriter(path, **options) as writer:
        for image, chosen in pages:
            writer.write(image, **{"photometric": "rgb", **TILED, **HALF, **chosen})
    return path


def _whole(path: Path) -> np.ndarray:
    slide = open_slide(path, 0.5)
    return slide.read(0, 0, 0, slide.width, slide.height)


def test_a_page_of_another_shape_is_no_level(tmp_path):
    photo = np.full((100, 320, 3), 9, np.uint8)
    reduced = {"subfiletype": 1}
    path = _write(tmp_path / "t.tif", (WAVES, {}), (photo, reduced))
    slide = open_slide(path)
    assert [(level.width, level.height) for level in slide.levels] == [(640, 480)]
    (note,) = slide.warnings
    assert "320 x 100 pixels" in note and "2 times across, 4.8 times down" in note
    assert View(slide, 1.0).read(0, 0, 320, 240).std() > 30  # not of the photo
    # Between levels, by OpenSlide and by tifffile; and SubIFDs.
    levels = [WAVES, WAVES[::2, ::2], photo, WAVES[::4, ::4]]
    write_arrays(tmp_path / "a.svs", levels, 0.5)
    write_arrays(tmp_path / "o.ome.tif", levels, 0.5, "ome")
    for name in ("a.svs", "o.ome.tif"):
        slide = open_slide(tmp_path / name)
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert len(slide.warnings) == 1 and "is left out" in slide.warnings[0]
        np.testing.assert_array_equal(slide.read(2, 0, 0, 160, 120), WAVES[::4, ::4])


def test_planes_of_focus_are_no_levels(tmp_path):
    write_arrays(tmp_path / "a.svs", [WAVES, 255 - WAVES, WAVES[::2, ::2]], 0.5)
    slide = open_slide(tmp_path / "a.svs")
    assert [level.downsample for level in slide.levels] == [1, 2]
    assert slide.warnings == ("it holds 2 images of its size; only the first is used",)
    np.testing.assert_array_equal(slide.read(0, 0, 0, 640, 480), WAVES)


@pytest.mark.parametrize("size", [(1111, 903), (4443, 3567), (105813, 93951)])
def test_rounding_of_levels_is_no_other_shape(size):
    for factor in (2, 4, 8, 16, 32, 64):
        for rounded in (int, lambda x: -int(-x // 1), round, lambda x: int(x) + 1):
            level = tuple(rounded(side / factor) for side in size)
            assert tiff.is_level(size, level)
    assert not tiff.is_level(size, (size[0] // 4, size[1] // 5))
    assert not tiff.is_level(size, (size[1] // 4, size[0] // 4))


@pytest.mark.parametrize(
    ("name", "axes", "options"),
    [
        ("z.ome.tif", "ZYX", {}),
        ("t.ome.tif", "TYX", {}),
        ("c.ome.tif", "CYX", {}),  # three dyes
        ("z.tif", "ZYX", {"imagej": True}),
        ("q.tif", "QYX", {}),
        ("i.tif", None, {"tile": (256, 256)}),
        ("s.ome.tif", "CYX", {"planarconfig": "separate"}),
    ],
)
def test_planes_are_no_colors(tmp_path, name, axes, options):
    planes = WAVES.transpose(2, 0, 1)
    chosen = {"photometric": "minisblack", **HALF, **options}
    if axes:
        chosen["metadata"] = {"axes": axes}
        tifffile.imwrite(tmp_path / name, planes, **chosen)
    else:
        with tifffile.TiffWriter(tmp_path / name) as writer:
            for plane in planes:
                writer.write(plane, metadata=None, **chosen)
    with pytest.raises(InputError, match=rf"{name}: .*480.*; save it as one 8-bit RGB picture$"):
        open_slide(tmp_path / name)


def test_a_stack_of_color_planes_is_no_slide(tmp_path):
    stack = np.stack([WAVES, WAVES])
    tifffile.imwrite(tmp_path / "z.ome.tif", stack, photometric="rgb", metadata={"axes": "ZYXS"})
    with pytest.raises(InputError, match=r"ZYXS \(2, 480, 640, 3\) .*; save it as one"):
        open_slide(tmp_path / "z.ome.tif")


@pytest.mark.parametrize("options", [{}, {"tile": None, "rowsperstrip": 16}])
def test_sections_of_a_plain_tiff_are_said(tmp_path, options):
    small, label = WAVES[:400, :500], np.full((60, 90, 3), 7, np.uint8)
    pages = [(image, options) for image in (label, small, WAVES)]
    path = _write(tmp_path / "two.tif", *pages)
    assert open_slide(path).warnings == ("it holds 2 large images; only the largest is used",)
    np.testing.assert_array_equal(_whole(path), WAVES)
    # Pages of one size become one series.
    path = _write(tmp_path / "same.tif", (WAVES, options), (255 - WAVES, options))
    assert open_slide(path).warnings == ("it holds 2 large images; only the first is used",)
    np.testing.assert_array_equal(_whole(path), WAVES)
    # Of the same shape, but no smaller version: nothing is reduced by 1.25.
    path = _write(tmp_path / "shape.tif", (WAVES[:384, :512], options), (WAVES, options))
    assert open_slide(path).warnings == ("it holds 2 large images; only the largest is used",)
    path = _write(tmp_path / "label.tif", (label, options), (WAVES, options))
    assert open_slide(path).warnings == ()
    np.testing.assert_array_equal(_whole(path), WAVES)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", ["unspecified", "unassalpha", "assocalpha"])
def test_a_fourth_sample_is_what_the_file_says(tmp_path, kind, separate):
    half = np.full((480, 640), 100, np.uint8)
    half[:, :100] = 0
    color = WAVES
    if kind == "assocalpha":
        color = np.rint(WAVES * (half[..., None] / 255)).astype(np.uint8)
    image = np.dstack([color, half])
    options = {"extrasamples": [kind]}
    if separate:
        image, options = image.transpose(2, 0, 1), options | {"planarconfig": "separate"}
    path = _write(tmp_path / "x.tif", (image, options))
    share = half[..., None] / 255
    expected = WAVES if kind == "unspecified" else WAVES * share + 255 * (1 - share)
    assert np.abs(_whole(path) - expected).max() <= 1
    said = [warning for warning in open_slide(path).warnings if "ExtraSamples" in warning]
    assert len(said) == (kind == "unspecified")


def test_more_samples_than_color(tmp_path):
    many = np.dstack([WAVES, WAVES])
    path = _write(tmp_path / "six.tif", (many, {"extrasamples": ["unspecified"] * 3}))
    np.testing.assert_array_equal(_whole(path), WAVES)
    assert "3 further samples" in open_slide(path).warnings[0]


def _ome(path: Path, body: str, image: np.ndarray = WAVES[..., 0], number: int = 1) -> Path:
    head = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/'
    xml = f'{head}Schemas/OME/2016-06" UUID="urn:uuid:{number}">{body}</OME>'
    photometric = "rgb" if image.ndim == 3 else "minisblack"
    tifffile.imwrite(path, image, photometric=photometric, description=xml.encode(), metadata=None)
    return path


def _image(parts: str, planes: int = 1) -> str:
    return (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="640"'
        f' SizeY="480" SizeC="{planes}" SizeZ="1" SizeT="1">{parts}</Pixels></Image>'
    )


def _part(channel: int, name: str, uuid: int) -> str:
    return (
        f'<TiffData FirstC="{channel}" IFD="0" PlaneCount="1"><UUID FileName="{name}">'
        f"urn:uuid:{uuid}</UUID></TiffData>"
    )


def test_parts_of_ome_that_are_missing_are_named(tmp_path):
    parts = "".join(_part(index, f"c{index}.ome.tif", index + 1) for index in range(3))
    path = _ome(tmp_path / "c0.ome.tif", _image(parts, 3))
    with pytest.raises(InputError, match=r"which are missing: c1\.ome\.tif, c2\.ome\.tif; copy"):
        open_slide(path)
    # What is there instead is not opened: a pipe would be waited for.
    (tmp_path / "c1.ome.tif").touch()
    os.mkfifo(tmp_path / "c2.ome.tif")
    with pytest.raises(InputError, match=r"c2\.ome\.tif: a named pipe, not a file"):
        open_slide(path)
    companion = '<BinaryOnly MetadataFile="slide.companion.ome" UUID="urn:uuid:2"/>'
    path = _ome(tmp_path / "binary.ome.tif", companion)
    with pytest.raises(InputError, match=r"slide\.companion\.ome, which is missing; save it as"):
        open_slide(path)
    # A file that was given another name is whole.
    path = _ome(tmp_path / "renamed.ome.tif", _image(_part(0, "before.ome.tif", 1)))
    assert open_slide(path, 0.5).read(0, 0, 0, 640, 480)[..., 0].tolist() == WAVES[..., 0].tolist()
    # Planes that the metadata counts and the file has not.
    path = _ome(tmp_path / "short.ome.tif", _image("<TiffData/>", 3))
    with pytest.raises(InputError, match=r"short\.ome\.tif: .*; save it"):
        open_slide(path)


@pytest.mark.parametrize("name", ["a.ome.tif", "b.ome.tif"])
def test_each_file_of_an_ome_set_is_read_by_itself(tmp_path, name):
    """Two images, each in a file of its own, with the metadata of both."""
    images = {"a.ome.tif": (WAVES, 0.5), "b.ome.tif": (255 - WAVES, 0.25)}
    if name == "a.ome.tif":
        images["b.ome.tif"] = smooth(900, 700), 0.25
    body = "".join(
        _image(_part(0, file, number), 3).replace(
            'SizeX="640" SizeY="480"',
            f'SizeX="{image.shape[1]}" SizeY="{image.shape[0]}" PhysicalSizeX="{mpp}" '
            f'PhysicalSizeY="{mpp}"',
        )
        for number, (file, (image, mpp)) in enumerate(images.items(), start=1)
    ).replace("<TiffData", '<Channel SamplesPerPixel="3"/><TiffData')
    for number, (file, (image, _)) in enumerate(images.items(), start=1):
        _ome(tmp_path / file, body, image, number)
    image, mpp = images.pop(name)
    slide = open_slide(tmp_path / name)
    assert slide.mpp == mpp
    np.testing.assert_array_equal(slide.read(0, 0, 0, slide.width, slide.height), image)
    (other,) = images
    assert slide.warnings == (f"its metadata names images of other files, too: {other}",)


def test_pixels_that_are_all_in_another_file(tmp_path):
    body = _image(_part(0, "b.ome.tif", 2))
    _ome(tmp_path / "a.ome.tif", body, WAVES[..., 0], 1)
    _ome(tmp_path / "b.ome.tif", body, 255 - WAVES[..., 0], 2)
    with pytest.raises(InputError, match=r"a\.ome\.tif: its pixels are in b\.ome\.tif; name that"):
        open_slide(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("body", [_image("<TiffData/>").replace("480", "960"), ""])
def test_ome_metadata_of_another_image(tmp_path, body):
    body = body.replace("<Pixels", '<Pixels PhysicalSizeX="0.5" PhysicalSizeY="0.5"')
    slide = open_slide(_ome(tmp_path / "x.ome.tif", body))
    assert slide.mpp is None
    assert slide.warnings[0].startswith("its OME metadata describes no image of its size")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_slides_are_not_turned(tmp_path, orientation):
    tag = {"extratags": [(274, "H", 1, orientation, True)]}
    for name, chosen in (("t.tif", {}), ("s.tif", {"tile": None}), ("a.svs", {})):
        chosen = {**chosen, "description": APERIO} if name == "a.svs" else chosen
        path = _write(tmp_path / name, (WAVES, tag | chosen))
        np.testing.assert_array_equal(_whole(path), WAVES)
        said = f"its Orientation tag ({orientation}) is not obeyed, as in viewers of slides"
        assert open_slide(path, 0.5).warnings == (() if orientation == 1 else (said,))


@pytest.mark.parametrize("order", ["lm", "ml", "m", "mlml"])
def test_masks_of_transparency_are_no_levels(tmp_path, order):
    reduced = {"subfiletype": 1}
    mask = np.full((240, 320), 255, np.uint8), reduced | {"photometric": "minisblack"}
    level = WAVES[::2, ::2].copy(), reduced
    smaller = {"l": (WAVES[::4, ::4].copy(), reduced), "m": (mask[0][::2, ::2].copy(), mask[1])}
    pages = [{"l": level, "m": mask}[letter] for letter in order[:2]]
    pages += [smaller[letter] for letter in order[2:]]
    path = _write(tmp_path / "m.tif", (WAVES, {}), *pages)
    with tifffile.TiffFile(path, mode="r+") as file:
        for page, letter in zip(file.pages[1:], order, strict=True):
            page.tags["NewSubfileType"].overwrite(5 if letter == "m" else 1)
    slide = open_slide(path)
    assert [level.downsample for level in slide.levels] == [1, 2, 4][: 1 + order.count("l")]
    assert slide.warnings == ()
    np.testing.assert_array_equal(_whole(path), WAVES)
    half = View(slide, 1.0).read(0, 0, 320, 240).astype(int)
    assert np.abs(half - WAVES[::2, ::2]).max() < 9


@pytest.mark.parametrize("kind", ["deep", "fourth", "gray"])
def test_a_level_of_another_kind_is_not_used(tmp_path, kind):
    half = WAVES[::2, ::2].copy()
    level, options = {
        "deep": (half.astype(np.uint16) * 16, {}),
        "fourth": (np.dstack([half, half[..., :1] * 0]), {"extrasamples": ["unspecified"]}),
        "gray": (255 - half[..., 0], {"photometric": "minisblack"}),
    }[kind]
    path = _write(tmp_path / "k.tif", (WAVES, {}), (level, {"subfiletype": 1, **options}))
    view = View(open_slide(path), 1.0)
    assert np.abs(view.read(0, 0, 320, 240).astype(int) - half).max() < 9


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("gray", [False, True])
def test_16_bits_are_not_cut_to_8(tmp_path, level, gray):
    deep = WAVES.astype(np.uint16) * 16
    images = [WAVES, WAVES[::2, ::2].copy()]
    images[level] = deep[:: level + 1, :: level + 1].copy()
    options = {"description": APERIO}
    if gray:
        images = [image[..., 0].copy() for image in images]
        options["photometric"] = "minisblack"
    label = WAVES[:40].copy(), {"tile": None}
    pages = [(image, options) for image in images]
    path = _write(tmp_path / "d.svs", pages[0], label, pages[1])
    with pytest.raises(InputError, match=r"d\.svs: .* of uint16 .*; save it as one 8-bit RGB"):
        open_slide(path)
    with pytest.raises(InputError, match=r"d\.svs: .* of uint16 .*; save it as one 8-bit RGB"):
        tiff_headers.check_openslide(path)


def test_dyes_of_aperio_are_no_slide(tmp_path):
    gray = {"photometric": "minisblack", "description": APERIO + b"|Dye = DAPI"}
    path = _write(tmp_path / "f.svs", *[(WAVES[..., c].copy(), gray) for c in range(3)])
    with pytest.raises(InputError, match=r"f\.svs: .*planes that are no colors; save it as one"):
        open_slide(path)
    path = _write(tmp_path / "one.svs", (WAVES[..., 0].copy(), gray))
    with pytest.raises(InputError, match=r"one\.svs: fluorescence of one dye, no stain; give"):
        open_slide(path)
    path = _write(tmp_path / "gray.svs", (WAVES[..., 0].copy(), gray | {"description": APERIO}))
    np.testing.assert_array_equal(_whole(path)[..., 1], WAVES[..., 0])


@pytest.mark.parametrize("photometric", ["miniswhite", "palette"])
def test_colors_that_only_openslide_knows(tmp_path, photometric):
    options = {"photometric": photometric, "resolution": None}
    if photometric == "palette":
        options["colormap"] = np.stack([np.arange(255, -1, -1) * 257] * 3).astype(np.uint16)
    path = _write(tmp_path / "p.tif", (WAVES[..., 0].copy(), options))
    np.testing.assert_array_equal(_whole(path)[..., 0], 255 - WAVES[..., 0])


@pytest.mark.parametrize("name", ["s.tif", "s.ome.tif"])
def test_small_sections_are_said(tmp_path, name):
    large, small = smooth(1300, 1100), WAVES[:270, :300].copy()
    thumbnail, label = large[::4, ::4].copy(), WAVES[:200, :200].copy()
    pages = [(image, {}) for image in (large, small, thumbnail, label)]
    path = _write(tmp_path / name, *pages)
    assert open_slide(path, 0.5).warnings == ("it holds 1 smaller image, left out",)
    path = _write(tmp_path / "none.tif", *pages[:1], *pages[2:])
    assert open_slide(path, 0.5).warnings == ()


TYPES = {3: "H", 4: "I"}
LIST = 2**31 - 1


def _header(path: Path, circle: bool = False, description: bytes = b"", **changes) -> Path:
    """A file of 4 KB: one page of 512 x 512 pixels in four tiles, or as `changes` say."""
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
        ({"t256": (4, [LIST]), "t257": (4, [LIST])}, "which no slide has"),
        ({"t256": (4, [2**21]), "t257": (4, [2**21])}, "which no slide has"),
        ({"t256": (4, [LIST]), "t257": (4, [LIST]), "description": APERIO}, "no slide has"),
        ({"t256": (4, [65536]), "t257": (4, [4096])}, "its table of tiles is cut short"),
        # OpenSlide would end the process over these.
        ({"t322": (4, [LIST]), "t323": (4, [LIST])}, "need too much memory"),
        ({"t322": (4, [LIST]), "t323": (4, [LIST]), "description": APERIO}, "too much memory"),
        ({"t277": (3, [65535])}, "need too much memory"),
        ({"t277": (3, [0])}, "damaged"),
        ({"t322": (4, [0]), "t323": (4, [0])}, "tiles of "),
        ({"t256": (4, [0]), "t257": (4, [0])}, "an image of 0 x 0 pixels"),
        ({"t324": (4, [LIST] * 4)}, "cut short"),
        ({"t324": (4, [2048] * 4, 2**30)}, "copy the slide again"),
        ({"t325": (4, [0] * 4)}, "without any data"),
        # OpenSlide would end the process over this, too.
        ({"t325": (4, [1024] * 3 + [LIST])}, "cut short"),
        ({"t325": (4, [1024] * 3 + [LIST]), "description": APERIO}, "cut short"),
        ({"t259": (3, [22610])}, "compressed as JPEGXR_NDPI, which is not read; convert"),
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
def test_headers_that_claim_too_much_cost_a_line(tmp_path, changes, message, monkeypatch):
    path = _header(tmp_path / "x.tif", **changes)

    def refuse(*_: object) -> None:
        raise AssertionError("read as OpenSlide does")

    monkeypatch.setattr("openslide.OpenSlide.read_region", refuse)
    with pytest.raises(InputError, match=rf"x\.tif: .*{message}") as caught:
        open_slide(path, 0.5)
    assert "\n" not in str(caught.value)


def test_headers_of_subifds(tmp_path):
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


def test_planes_and_pages_without_number(tmp_path, monkeypatch):
    image = _image("<TiffData/>").replace('SizeZ="1"', 'SizeZ="30000"')
    with pytest.raises(InputError, match=r"many\.ome\.tif: 90,000 planes; save it"):
        open_slide(_ome(tmp_path / "many.ome.tif", 3 * image))
    path = _write(tmp_path / "pages.tif", *[(WAVES, {})] * 4)
    assert len(open_slide(path).warnings) == 1
    monkeypatch.setattr(tiff_headers, "_MOST_PAGES", 3)
    with pytest.raises(InputError, match=r"pages\.tif: over 3 pages; save the slide to use"):
        open_slide(path)


def test_a_sound_header_of_the_same_kind_opens(tmp_path):
    assert open_slide(_header(tmp_path / "x.tif"), 0.5).levels[0].width == 512
