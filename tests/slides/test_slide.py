"""Opening slides of every format, their levels, pixels and errors."""

import os
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from data.synthetic_slides import draw_section, draw_waves, write_arrays, write_pyramid
from tests.slides.conftest import HEIGHT, WIDTH
from tests.slides.dicom_writer import write_dicom
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import formats, tiff, tiff_headers, tiff_pixels
from wsss_jax.slides.reading.mpp import read_mpp_table
from wsss_jax.slides.reading.slide import check_mpp, open_slide
from wsss_jax.slides.reading.view import View


@pytest.mark.parametrize(
    ("name", "vendor", "power"),
    [("a.svs", "aperio", 20), ("g.tif", "generic-tiff", None), ("o.ome.tif", "ome-tiff", None)],
)
def test_every_format_gives_all_levels_pixels_and_metadata(slides_dir, waves, name, vendor, power):
    with open_slide(slides_dir / name) as slide:
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


def _use_only_openslide(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise tiff_pixels.OtherColors(f"{path}: refused")

    monkeypatch.setattr(tiff, "open_tiff", refuse)


@pytest.mark.parametrize("style", ["aperio", "generic"])
def test_openslide_and_tifffile_decode_the_same(tmp_path, monkeypatch, style):
    path = tmp_path / "x.tif"
    write_pyramid(path, draw_section(1024, 768), 0.5, (1, 2), style)
    by_tifffile = open_slide(path)
    _use_only_openslide(monkeypatch)
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
    with tifffile.TiffFile(path) as file:  # OpenSlide would read tiles
        assert not file.pages[0].is_tiled
    slide = open_slide(path)
    assert slide.vendor == "tiff"
    np.testing.assert_array_equal(slide.read(0, 100, 30, 700, 500), waves[30:530, 100:800])


def test_pictures_gray_and_transparency(tmp_path, waves):
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


def test_dicom_by_its_folder_or_by_one_of_its_files(tmp_path, waves, monkeypatch):
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


def test_sections_left_out_of_ome_are_reported(tmp_path, waves):
    path = tmp_path / "sections.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for image in (waves[:200], waves, waves[:, :30]):
            writer.write(image, photometric="rgb", metadata={"axes": "YXS"})
    note = "it holds 2 large images; only the largest is used"
    assert open_slide(path, 0.5).warnings == (note,)
    with pytest.raises(InputError, match=f"{note}; no micrometers .*: set"):
        check_mpp(open_slide(path))


def _write_text(path):
    path.write_text("not a slide\n" * 100)


def _write_nothing(path):
    path.touch()


def _write_cut_slide(path):
    write_arrays(path, [draw_waves(600, 600)], 0.5)
    path.write_bytes(path.read_bytes()[:20000])


def _write_cut_picture(path):
    Image.fromarray(draw_waves(600, 600)).save(path, format="png")
    path.write_bytes(path.read_bytes()[:5000])


def _write_16_bits(path):
    tifffile.imwrite(path, draw_waves(99, 99).astype(np.uint16), photometric="rgb")


def _make_empty_folder(path):
    path.mkdir()


def _write_broken_dicom(path):
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 500)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file; correct the path"),
        (_write_nothing, "an empty file; copy the slide again"),
        (_write_text, "not a slide of a known format; give"),
        (_write_cut_slide, "cut short; copy"),
        (_write_cut_picture, "damaged or cut short .*; copy"),
        (_write_16_bits, "uint16 .*save it as one 8-bit RGB picture"),
        (_make_empty_folder, r"a folder without \.dcm files; name a slide"),
        (_write_broken_dicom, "wsidicom|not a whole DICOM slide"),
    ],
)
def test_files_that_are_not_slides_cost_one_line(tmp_path, make, message):
    path = tmp_path / "x.svs"
    make(path)
    with pytest.raises(InputError, match=rf"x\.svs: .*({message})") as caught:
        open_slide(path)
    assert "\n" not in str(caught.value)


def test_absurd_mpp_large_images_and_unreadable_files(tmp_path, slides_dir, monkeypatch):
    with pytest.raises(InputError, match=r"a\.svs: 250 micrometers .*config\.slide_mpp between"):
        open_slide(slides_dir / "a.svs", 250)
    with monkeypatch.context() as patch:
        patch.setattr(tiff_headers, "SEGMENT_BYTES", 1000)
        with pytest.raises(InputError, match=r"1111 x 903 pixels in pieces .*vips tiffsave"):
            tifffile.imwrite(tmp_path / "s.tif", draw_waves(WIDTH, HEIGHT), photometric="rgb")
            open_slide(tmp_path / "s.tif")
    Image.fromarray(draw_waves(600, 600)).save(tmp_path / "p.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(InputError, match=r"p\.png: too large .*vips tiffsave"):
            open_slide(tmp_path / "p.png")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.svs: Permission denied; make the file readable"):
        open_slide(slides_dir / "a.svs")


@pytest.mark.parametrize(("style", "openslide"), [("aperio", 1), ("aperio", 0), ("ome", 0)])
def test_a_damaged_tile_in_the_middle_is_named(tmp_path, monkeypatch, style, openslide):
    path = tmp_path / f"{style}.tif"
    write_pyramid(path, draw_section(1024, 1024), 0.5, (1,), style)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[9], file.pages[0].databytecounts[9]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * count)
    if openslide:
        _use_only_openslide(monkeypatch)
    view = View(open_slide(path), 0.5)
    with pytest.raises(InputError, match=r"cannot be decoded at x \d+, y \d+ of level 0 .*; copy"):
        view.read(300, 600, 100, 100)


@pytest.mark.parametrize("kind", [AttributeError, AssertionError, EOFError, Exception, zlib.error])
def test_every_error_of_a_library_becomes_one_line(slides_dir, monkeypatch, kind):
    def fail(*_: object, **__: object) -> None:
        raise kind("first line\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(tifffile, "TiffFile", fail)
        with pytest.raises(InputError, match=r"g\.tif: damaged .*\(first line\); copy the slide"):
            open_slide(slides_dir / "g.tif")
    slide = open_slide(slides_dir / "g.tif")
    object.__setattr__(slide.raw, "read", fail)
    with pytest.raises(InputError, match=r"g\.tif: cannot be decoded at x 5, y 6 .*\(first line\)"):
        slide.read(0, 5, 6, 10, 10)


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.svs")
    with pytest.raises(InputError, match=r"a\.svs: a named pipe, not a file; remove it"):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(InputError, match=r"a\.svs: a named pipe"):
        read_mpp_table(tmp_path / "a.svs")
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "Slidedat.ini")
    (tmp_path / "m.mrxs").write_bytes(b"x")
    with pytest.raises(InputError, match=r"Slidedat\.ini: a named pipe"):
        open_slide(tmp_path / "m.mrxs")


def test_pictures_are_upright_and_of_8_bits(tmp_path, waves):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
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
