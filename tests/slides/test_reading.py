"""Opening slides of every format, and the slide at the working resolution."""

import os
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.slides.made_slides import (
    drawn_tissue,
    smooth,
    tiles_of,
    write_arrays,
    write_dicom,
    write_pyramid,
)
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import formats, reading, tiff, tiff_headers, tiff_pixels
from wsss_jax.slides.reading.reading import View, check_mpp, mpp_table, open_slide

WIDTH, HEIGHT = 1111, 903
REAL = Path(__file__).parents[3] / "shared" / "data" / "slides"


@pytest.fixture(scope="module")
def waves() -> np.ndarray:
    return smooth(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, waves: np.ndarray) -> Path:
    """One lossless slide of each style, of odd size, with mpp 0.5."""
    root = tmp_path_factory.mktemp("slides")
    for style, name in (("aperio", "a.svs"), ("generic", "g.tif"), ("ome", "o.ome.tif")):
        path, tiles = root / name, tiles_of(waves)
        write_pyramid(path, WIDTH, HEIGHT, tiles, 0.5, (1, 2, 4), style, "deflate")
    return root


@pytest.mark.parametrize(
    ("name", "vendor", "power"),
    [("a.svs", "aperio", 20), ("g.tif", "generic-tiff", None), ("o.ome.tif", "ome-tiff", None)],
)
def test_every_format_gives_all_levels_pixels_and_metadata(folder, waves, name, vendor, power):
    with open_slide(folder / name) as slide:
        assert (slide.vendor, slide.mpp, slide.objective_power) == (vendor, 0.5, power)
        assert [(s.width, s.height, s.downsample) for s in slide.levels] == [
            (1111, 903, 1.0),
            (555, 451, 2.0),
            (277, 225, 4.0),
        ]
        assert slide.bounds == (0, 0, WIDTH, HEIGHT)
        assert slide.warnings == ()
        np.testing.assert_array_equal(slide.read(0, 250, 250, 300, 300), waves[250:550, 250:550])
        corner = slide.read(0, WIDTH - 10, HEIGHT - 10, 30, 20)
        np.testing.assert_array_equal(corner[:10, :10], waves[-10:, -10:])
        assert (corner[10:] == 255).all() and (corner[:, 10:] == 255).all()
        assert (slide.read(1, -50, -50, 40, 40) == 255).all()
        half = cv2.resize(waves[:902, :1110], (555, 451), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(slide.read(1, 301, 203, 254, 248), half[203:, 301:])


def _only_openslide(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise tiff_pixels.OtherColors(f"{path}: refused")

    monkeypatch.setattr(tiff, "open_tiff", refuse)


@pytest.mark.parametrize("style", ["aperio", "generic"])
def test_openslide_and_tifffile_decode_the_same(tmp_path, monkeypatch, style):
    path = tmp_path / "x.tif"
    write_pyramid(path, 1024, 768, drawn_tissue(1024, 768), 0.5, (1, 2), style)
    by_tifffile = open_slide(path)
    _only_openslide(monkeypatch)
    by_openslide = open_slide(path)
    assert by_openslide.vendor == by_tifffile.vendor
    for level in (0, 1):
        pictures = [s.read(level, 130, 101, 300, 250) for s in (by_openslide, by_tifffile)]
        np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("name", ["sparse.tif", "sparse.ome.tif"])
def test_tiles_left_out_are_white(tmp_path, waves, name):
    path = tmp_path / name
    tiles = [waves[:256, :256], None, waves[:256, 512:768], waves[:256, 768:1024]]
    shape = (256, 1024, 3)
    tifffile.imwrite(
        path, iter(tiles), shape=shape, dtype=np.uint8, photometric="rgb", tile=(256, 256)
    )
    image = open_slide(path).read(0, 0, 0, 1024, 256)
    assert (image[:, 256:512] == 255).all()
    np.testing.assert_array_equal(image[:, 512:], waves[:256, 512:1024])


@pytest.mark.parametrize("options", [{"rowsperstrip": 16}, {"planarconfig": "separate"}])
def test_tiff_in_strips_and_in_planes(tmp_path, waves, options):
    path = tmp_path / "strips.tif"
    data = waves.transpose(2, 0, 1) if "planarconfig" in options else waves
    tifffile.imwrite(path, data, photometric="rgb", resolution=(20000, 20000), **options)
    with tifffile.TiffFile(path) as file:  # not through a decoder of ours
        assert not file.pages[0].is_tiled
    slide = open_slide(path)
    assert slide.vendor == "tiff"
    np.testing.assert_array_equal(slide.read(0, 100, 30, 700, 500), waves[30:530, 100:800])


def test_pictures_and_gray_and_transparency(tmp_path, waves):
    Image.fromarray(waves).save(tmp_path / "p.png")
    slide = open_slide(tmp_path / "p.png", 0.5)
    assert (slide.vendor, slide.mpp, slide.metadata_mpp) == ("picture", 0.5, None)
    np.testing.assert_array_equal(slide.read(0, 0, 0, WIDTH, HEIGHT), waves)
    half = np.dstack([waves, np.where(np.arange(WIDTH) < 500, 0, 255) + 0 * waves[..., 0]])
    Image.fromarray(half.astype(np.uint8)).save(tmp_path / "t.png")
    tifffile.imwrite(tmp_path / "t.tif", half.astype(np.uint8), photometric="rgb")
    for name in ("t.png", "t.tif"):
        read = open_slide(tmp_path / name).read(0, 0, 0, WIDTH, HEIGHT)
        assert (read[:, :500] == 255).all()
        np.testing.assert_array_equal(read[:, 500:], waves[:, 500:])
    tifffile.imwrite(tmp_path / "gray.tif", waves[..., 0])
    read = open_slide(tmp_path / "gray.tif").read(0, 0, 0, WIDTH, HEIGHT)
    np.testing.assert_array_equal(read, np.repeat(waves[..., :1], 3, axis=2))


def test_dicom_in_a_folder_or_by_one_of_its_files(tmp_path, waves, monkeypatch):
    pytest.importorskip("wsidicom")
    write_dicom(tmp_path / "d", [waves, waves[:902:2, :1110:2]], 0.5)
    for path in (tmp_path / "d", tmp_path / "d" / "level1.dcm"):
        slide = open_slide(path)
        assert (slide.vendor, slide.mpp, len(slide.levels)) == ("dicom", 0.5, 2)
        assert slide.name == path.stem
    expected = slide.read(0, 200, 200, 500, 500)
    monkeypatch.setattr(formats.openslide.OpenSlide, "detect_format", lambda path: None)
    slide = open_slide(tmp_path / "d")
    assert (slide.mpp, slide.levels[1].downsample) == (0.5, 2.0)
    assert np.abs(slide.read(0, 200, 200, 500, 500).astype(int) - expected).max() <= 3
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    with pytest.raises(InputError, match=r"d: OpenSlide cannot read .*; pip install wsidicom"):
        open_slide(tmp_path / "d")


@pytest.mark.parametrize(("size", "unit"), [(0.5, "µm"), (500, "nm"), (0.0005, "mm")])
def test_units_of_ome(tmp_path, waves, size, unit):
    metadata = {"axes": "YXS"}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    path = tmp_path / "o.ome.tif"
    tifffile.imwrite(path, waves, photometric="rgb", tile=(256, 256), metadata=metadata)
    assert open_slide(path).mpp == pytest.approx(0.5)


def test_the_largest_image_of_ome_is_the_slide(tmp_path, waves):
    path = tmp_path / "macro_first.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for image, mpp in ((waves[:40, :60], 9.0), (waves, 0.5)):
            size = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            writer.write(image, photometric="rgb", metadata={"axes": "YXS", **size})
    with open_slide(path) as slide:
        assert (slide.height, slide.width, slide.mpp) == (*waves.shape[:2], 0.5)
        np.testing.assert_array_equal(slide.read(0, 0, 0, slide.width, slide.height), waves)
        assert slide.warnings == ()


def test_sections_that_are_left_out_of_ome_are_told_of(tmp_path, waves):
    path = tmp_path / "sections.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for image in (waves[:200], waves, waves[:, :30]):
            writer.write(image, photometric="rgb", metadata={"axes": "YXS"})
    note = "it holds 2 large images; only the largest is used"
    assert open_slide(path, 0.5).warnings == (note,)
    with pytest.raises(InputError, match=f"{note}; no micrometers .*: set"):
        check_mpp(open_slide(path))


def test_mpp_of_the_metadata_of_the_user_and_of_nobody(tmp_path, folder, waves):
    slide = open_slide(folder / "a.svs", 0.25)
    assert (slide.mpp, slide.metadata_mpp, check_mpp(slide)) == (0.25, 0.5, 0.25)
    assert "says 0.5" in slide.warnings[0]
    assert open_slide(folder / "a.svs", 0.52).warnings == ()
    for style, name in (("aperio", "a.svs"), ("generic", "g.tif"), ("ome", "o.tif")):
        write_arrays(tmp_path / name, [waves], None, style)
        slide = open_slide(tmp_path / name)
        assert slide.mpp is None
        with pytest.raises(InputError, match=rf"{name}: no micro.*config\.slide_mpp=0\.25 .*CSV"):
            View(slide, 1.0)
    # 72 dots per inch, as many programs write without knowing
    tifffile.imwrite(tmp_path / "dpi.tif", waves, photometric="rgb", resolution=(72, 72, "INCH"))
    slide = open_slide(tmp_path / "dpi.tif")
    with pytest.raises(InputError, match=r"352\.778 micrometers per pixel, which is absurd: set"):
        check_mpp(slide)
    tifffile.imwrite(tmp_path / "one.tif", waves, photometric="rgb", resolution=(1, 1, "NONE"))
    assert open_slide(tmp_path / "one.tif").mpp is None


def _text(path):
    path.write_text("not a slide\n" * 100)


def _zero(path):
    path.touch()


def _cut(path):
    write_arrays(path, [smooth(600, 600)], 0.5)
    path.write_bytes(path.read_bytes()[:20000])


def _cut_picture(path):
    Image.fromarray(smooth(600, 600)).save(path, format="png")
    path.write_bytes(path.read_bytes()[:5000])


def _deep(path):
    tifffile.imwrite(path, smooth(99, 99).astype(np.uint16), photometric="rgb")


def _no_dicom(path):
    path.mkdir()


def _not_dicom(path):
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 500)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file; correct the path"),
        (_zero, "an empty file; copy the slide again"),
        (_text, "not a slide, whatever its name says; give"),
        (_cut, "cut short; copy"),
        (_cut_picture, "damaged or cut short .*; copy"),
        (_deep, "uint16 .*save it as one 8-bit RGB picture"),
        (_no_dicom, r"a folder without \.dcm files; name a slide"),
        (_not_dicom, "wsidicom|not a whole DICOM slide"),
    ],
)
def test_what_is_no_slide_is_said_in_one_line(tmp_path, make, message):
    path = tmp_path / "x.svs"
    make(path)
    with pytest.raises(InputError, match=rf"x\.svs: .*({message})") as caught:
        open_slide(path)
    assert "\n" not in str(caught.value)


def test_unreadable_absurd_and_too_large(tmp_path, folder, monkeypatch):
    with pytest.raises(InputError, match=r"a\.svs: 250 micrometers .*config\.slide_mpp between"):
        open_slide(folder / "a.svs", 250)
    with monkeypatch.context() as patch:
        patch.setattr(tiff_headers, "SEGMENT_BYTES", 1000)
        with pytest.raises(InputError, match=r"1111 x 903 pixels in pieces .*vips tiffsave"):
            tifffile.imwrite(tmp_path / "s.tif", smooth(WIDTH, HEIGHT), photometric="rgb")
            open_slide(tmp_path / "s.tif")
    Image.fromarray(smooth(600, 600)).save(tmp_path / "p.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(InputError, match=r"p\.png: too large .*vips tiffsave"):
            open_slide(tmp_path / "p.png")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.svs: Permission denied; make the file readable"):
        open_slide(folder / "a.svs")


@pytest.mark.parametrize(("style", "openslide"), [("aperio", 1), ("aperio", 0), ("ome", 0)])
def test_a_damaged_tile_in_the_middle_is_named(tmp_path, monkeypatch, style, openslide):
    path = tmp_path / f"{style}.tif"
    write_pyramid(path, 1024, 1024, drawn_tissue(1024, 1024), 0.5, (1,), style)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[9], file.pages[0].databytecounts[9]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * count)
    if openslide:
        _only_openslide(monkeypatch)
    view = View(open_slide(path), 0.5)
    with pytest.raises(InputError, match=r"cannot be decoded at x \d+, y \d+ of level 0 .*; copy"):
        view.read(300, 600, 100, 100)


@pytest.mark.parametrize("kind", [AttributeError, AssertionError, EOFError, Exception, zlib.error])
def test_whatever_a_library_raises_becomes_a_line(folder, monkeypatch, kind):
    def fail(*_: object, **__: object) -> None:
        raise kind("first line\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(tifffile, "TiffFile", fail)
        with pytest.raises(InputError, match=r"g\.tif: damaged .*\(first line\); copy the slide"):
            open_slide(folder / "g.tif")
    slide = open_slide(folder / "g.tif")
    object.__setattr__(slide._opened, "read", fail)
    with pytest.raises(InputError, match=r"g\.tif: cannot be decoded at x 5, y 6 .*\(first line\)"):
        slide.read(0, 5, 6, 10, 10)


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.svs")
    with pytest.raises(InputError, match=r"a\.svs: a named pipe, not a file; remove it"):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(InputError, match=r"a\.svs: a named pipe"):
        mpp_table(tmp_path / "a.svs")
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "Slidedat.ini")
    (tmp_path / "m.mrxs").write_bytes(b"x")
    with pytest.raises(InputError, match=r"Slidedat\.ini: a named pipe"):
        open_slide(tmp_path / "m.mrxs")


def test_pictures_are_upright_and_of_8_bits(tmp_path, waves):
    exif = Image.Exif()
    exif[274] = 6  # shown turned by a quarter
    for name, options in (("r.png", {}), ("r.jpg", {"quality": 98, "subsampling": 0})):
        Image.fromarray(np.rot90(waves)).save(tmp_path / name, exif=exif, **options)
        slide = open_slide(tmp_path / name, 0.5)
        assert (slide.width, slide.height) == (WIDTH, HEIGHT)
        difference = np.abs(slide.read(0, 0, 0, WIDTH, HEIGHT).astype(int) - waves)
        assert difference.max() <= 8
        assert slide.warnings == ("it is turned upright as its EXIF orientation says",)
    for orientation in (0, 1, 9, 77):  # none of these turns
        exif[274] = orientation
        Image.fromarray(waves).save(tmp_path / "u.png", exif=exif)
        slide = open_slide(tmp_path / "u.png", 0.5)
        np.testing.assert_array_equal(slide.read(0, 0, 0, WIDTH, HEIGHT), waves)
        assert slide.warnings == ()
    deep = (waves.astype(np.uint16) * 4)[..., ::-1]  # 10 bits: Pillow would show their upper 8
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "gray.png"), deep[..., 0])
    for name in ("deep.png", "gray.png"):
        with pytest.raises(InputError, match=rf"{name}: (more than 8|16) bits .*; save it"):
            open_slide(tmp_path / name)


@pytest.mark.parametrize("text", ["nan", "inf", "-0.5", "1e400", ""])
def test_mpp_that_is_no_number(tmp_path, waves, text):
    description = f"Aperio Image Library v1\r\n|AppMag = {text}|MPP = {text}"
    path = tmp_path / "a.svs"
    options = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    tifffile.imwrite(path, waves, description=description, **options)
    size = f'PhysicalSizeX="{text}" PhysicalSizeY="{text}"'
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels Type="uint8"'
        f' DimensionOrder="XYCZT" SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC="3" SizeZ="1" SizeT="1"'
        f' {size}><Channel SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "o.ome.tif", waves, description=xml, **options)
    for name in ("a.svs", "o.ome.tif"):
        slide = open_slide(tmp_path / name)
        assert slide.mpp is None and len(slide.warnings) == 1
        assert slide.objective_power is None
        with pytest.raises(InputError, match=r": .*micrometers per pixel.*: set --config\.slide"):
            check_mpp(slide)


@pytest.fixture(scope="module")
def tall_pixels(tmp_path_factory: pytest.TempPathFactory, waves: np.ndarray) -> Path:
    """A slide of 0.25 x 0.5 micrometers per pixel, of 0.0625 mm2."""
    path = tmp_path_factory.mktemp("tall") / "t.tif"
    image = cv2.resize(waves[:500, :500], (1000, 500), interpolation=cv2.INTER_NEAREST)
    tifffile.imwrite(
        path,
        image,
        photometric="rgb",
        tile=(256, 256),
        resolution=(40000, 20000),
        resolutionunit="CENTIMETER",
    )
    return path


def test_each_axis_of_pixels_that_are_not_square(tall_pixels, waves):
    slide = open_slide(tall_pixels)
    assert slide.mpp_xy == (0.25, 0.5)
    assert slide.mpp**2 == slide.metadata_mpp**2 == pytest.approx(0.125)  # of their area
    (note,) = slide.warnings
    assert "not square (0.25 x 0.5 micrometers" in note
    view = View(slide, 0.5)
    assert (view.width, view.height, view.scale) == (500, 500, (2.0, 1.0))
    np.testing.assert_array_equal(view.read(0, 0, 500, 500), waves[:500, :500])
    assert view.overview(100)[0].shape == (100, 100, 3)
    quarter = View(slide, 0.25)  # copied across, enlarged down
    assert (quarter.width, quarter.height) == (1000, 1000)
    found = quarter.read(100, 100, 800, 800).astype(int)
    assert np.abs(found[:, ::2] - cv2.resize(waves[50:450, 50:450], (400, 800))).max() <= 4
    with pytest.raises(InputError, match=r"its 0\.5 micrometers .* over twice the 0\.2 "):
        View(slide, 0.2)
    # One number of the user's is that of both axes.
    slide = open_slide(tall_pixels, 0.5)
    assert slide.mpp_xy == (0.5, 0.5) and "0.5 is used for both" in slide.warnings[0]


def _difference(image: np.ndarray, source: np.ndarray, ratio: float) -> np.ndarray:
    """Between an image and its `ratio` times larger source, resized as a whole."""
    height, width = image.shape[:2]
    padded = Image.fromarray(np.pad(source, ((0, 9), (0, 9), (0, 0)), mode="edge"))
    box = (0, 0, width * ratio, height * ratio)
    expected = np.asarray(padded.resize((width, height), Image.Resampling.BILINEAR, box))
    return np.abs(image.astype(int) - expected)


@pytest.mark.parametrize("resample", ["area", "triangle"])
@pytest.mark.parametrize("ratio", [1, 2, 3.7])
@pytest.mark.parametrize("name", ["a.svs", "o.ome.tif"])
def test_the_view_is_level_0_resized(folder, waves, name, ratio, resample, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK", 128)  # several blocks
    view = View(open_slide(folder / name), 0.5 * ratio, resample)
    size = (round(WIDTH / ratio), round(HEIGHT / ratio))
    assert (view.width, view.height) == size
    # Where a level ends early its border is repeated: compared up to there.
    image = view.read(0, 0, int(WIDTH // ratio), int(HEIGHT // ratio))
    assert _difference(image, waves, ratio).max() <= (0 if ratio == 1 else 2)


@pytest.mark.parametrize("resample", ["area", "triangle"])
def test_blocks_and_their_size_do_not_show(folder, monkeypatch, resample):
    slide = open_slide(folder / "g.tif")
    whole = View(slide, 0.65, resample)
    monkeypatch.setattr(reading, "_BLOCK", 64)
    blocks = View(slide, 0.65, resample)
    region = (0, 0, whole.width, whole.height)
    difference = np.abs(whole.read(*region).astype(int) - blocks.read(*region))
    assert difference.max() <= 1


@pytest.fixture(scope="module")
def views(folder: Path) -> list[tuple[View, np.ndarray]]:
    """Views without and with resampling, one enlarged, and each as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK", 64)
        patch.setattr(reading, "_BLOCK_BYTES", 5 * 64 * 64 * 3)  # blocks are made again
        slide = open_slide(folder / "a.svs")
        made = [View(slide, mpp) for mpp in (0.3, 1.0, 1.7)]
    return [(view, view.read(0, 0, view.width, view.height)) for view in made]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2),
    st.tuples(*[st.integers(-80, 900)] * 2),
    st.tuples(*[st.integers(1, 300)] * 2),
)
def test_a_pixel_does_not_depend_on_the_region_asked_for(views, index, corner, size):
    view, whole = views[index]
    padded = np.full((1700, 2200, 3), 255, np.uint8)
    padded[80 : 80 + view.height, 80 : 80 + view.width] = whole[: 1700 - 80, : 2200 - 80]
    x, y = corner
    expected = padded[y + 80 : y + 80 + size[1], x + 80 : x + 80 + size[0]]
    np.testing.assert_array_equal(view.read(x, y, *size), expected)


def test_threads_get_the_same_and_share_blocks(folder, monkeypatch):
    slide = open_slide(folder / "o.ome.tif")
    view, made = View(slide, 0.65), []
    expected = View(slide, 0.65).read(0, 0, view.width, view.height)
    block, barrier = reading._block, threading.Barrier(8)
    monkeypatch.setattr(reading, "_block", lambda *a: made.append(a[2:]) or block(*a))

    def read(_: int) -> np.ndarray:
        barrier.wait(10)
        return view.read(0, 0, view.width, view.height)

    with ThreadPoolExecutor(8) as threads:
        for got in threads.map(read, range(8)):
            np.testing.assert_array_equal(got, expected)
    assert len(made) == 1


def test_level_ratios_that_are_not_whole(tmp_path, waves):
    small = np.asarray(Image.fromarray(waves).resize((444, 361), Image.Resampling.BOX))
    write_arrays(tmp_path / "r.svs", [waves, small], 0.5)
    view = View(open_slide(tmp_path / "r.svs"), 1.5)
    assert view.slide.levels[1].downsample == pytest.approx(2.502, abs=1e-3)
    assert _difference(view.read(0, 0, view.width, view.height), waves, 3).max() <= 3
    # 903 rows halved are 451, which 452 working rows need: the last is no white line.
    write_arrays(tmp_path / "h.svs", [waves, waves[:902:2, :1110:2]], 0.5)
    view = View(open_slide(tmp_path / "h.svs"), 1.0)
    assert view.height == 452
    np.testing.assert_array_equal(view.read(0, 451, 500, 1), view.read(0, 450, 500, 1))


def test_tiny_and_coarse_slides(tmp_path):
    write_arrays(tmp_path / "t.svs", [np.full((3, 5, 3), 7, np.uint8)], 0.5)
    view = View(open_slide(tmp_path / "t.svs"), 10.0)
    assert (view.width, view.height) == (1, 1)
    assert (view.read(0, 0, 1, 1) == 7).all()
    assert view.overview(100)[0].shape == (1, 1, 3)
    enlarged = View(open_slide(tmp_path / "t.svs"), 0.25)
    assert (enlarged.width, enlarged.height) == (10, 6)
    assert "enlarged" in enlarged.warning and not view.warning
    with pytest.raises(InputError, match=r"t\.svs: its 0\.5 micrometers .* over twice the 0\.2 "):
        View(open_slide(tmp_path / "t.svs"), 0.2)


def test_overview_is_the_slide_small(folder, waves):
    view = View(open_slide(folder / "o.ome.tif"), 1.0)
    small, factor = view.overview(100)
    assert small.shape == (81, 100, 3)
    assert factor == view.width / 100
    expected = np.asarray(Image.fromarray(waves).resize((100, 81), Image.Resampling.BILINEAR))
    assert np.abs(small.astype(int) - expected).mean() < 3
    same, factor = view.overview(5000)
    assert factor == 1
    np.testing.assert_array_equal(same, view.read(0, 0, view.width, view.height))


def test_mpp_table(tmp_path):
    path = tmp_path / "mpp.csv"
    path.write_text("\ufeffslide, mpp\na.svs,0.25\n\nb, 0.5\n", encoding="utf-8")
    assert mpp_table(path) == {"a.svs": 0.25, "b": 0.5}
    for text, message in (
        ("a.svs,0.25\n", r"mpp\.csv:1: .*slide,mpp"),
        ("slide,mpp\na.svs,0.25\nb\n", r"mpp\.csv:3: 'b' is not"),
        ("slide,mpp\na.svs,250\n", r"mpp\.csv:2: .*0\.25"),
        ("slide,mpp\na.svs,nan\n", r"mpp\.csv:2: "),
        ("slide,mpp\na,1\na,2\n", r"mpp\.csv:3: 'a' is given twice"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            mpp_table(path)
    with pytest.raises(InputError, match=r"none\.csv: No such file.*; name"):
        mpp_table(tmp_path / "none.csv")
    path.write_bytes(b"slide,mpp\n\xff\xfe")
    with pytest.raises(InputError, match=r"mpp\.csv: not a CSV file"):
        mpp_table(path)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared")
def test_real_slides():
    slide = open_slide(REAL / "cmu-1-small-region.svs")
    assert (slide.mpp, slide.objective_power) == (0.499, 20)
    view = View(slide, 0.499)
    np.testing.assert_array_equal(view.read(900, 900, 300, 300), slide.read(0, 900, 900, 300, 300))
    slide = open_slide(REAL / "tcga-cr-7395-01a-01-ts1.svs", 0.5)
    assert slide.metadata_mpp is None
    lower, full = View(slide, 1.0), slide.read(0, 2000, 2000, 600, 600)
    half = np.asarray(Image.fromarray(full).resize((300, 300), Image.Resampling.BOX))
    # The level's own reduction is another one: alike, and not shifted.
    errors = [
        np.abs(lower.read(1000 + shift, 1000, 300, 300).astype(int) - half).mean()
        for shift in (-1, 0, 1)
    ]
    assert errors[1] < 0.7 * min(errors[0], errors[2])
