"""Which pages of a TIFF file are the slide, and which samples are colors."""

import numpy as np
import pytest
import tifffile

from data.synthetic_slides import draw_waves, write_arrays
from tests.slides.tiff_writer import APERIO, HALF, WAVES, read_whole, write_tiff
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import raw_slide, tiff_headers
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View


def test_pages_of_another_shape_are_not_levels(tmp_path):
    photo = np.full((100, 320, 3), 9, np.uint8)
    reduced = {"subfiletype": 1}
    path = write_tiff(tmp_path / "t.tif", (WAVES, {}), (photo, reduced))
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


def test_focal_planes_are_not_levels(tmp_path):
    write_arrays(tmp_path / "a.svs", [WAVES, 255 - WAVES, WAVES[::2, ::2]], 0.5)
    slide = open_slide(tmp_path / "a.svs")
    assert [level.downsample for level in slide.levels] == [1, 2]
    assert slide.warnings == ("it holds 2 images of its size; only the first is used",)
    np.testing.assert_array_equal(slide.read(0, 0, 0, 640, 480), WAVES)


@pytest.mark.parametrize("size", [(1111, 903), (4443, 3567), (105813, 93951)])
def test_levels_may_be_rounded_in_any_way(size):
    for factor in (2, 4, 8, 16, 32, 64):
        for rounded in (int, lambda x: -int(-x // 1), round, lambda x: int(x) + 1):
            level = tuple(rounded(side / factor) for side in size)
            assert raw_slide.is_level(size, level)
    assert not raw_slide.is_level(size, (size[0] // 4, size[1] // 5))
    assert not raw_slide.is_level(size, (size[1] // 4, size[0] // 4))


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
def test_planes_are_not_colors(tmp_path, name, axes, options):
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


def test_a_stack_of_color_planes_is_refused(tmp_path):
    stack = np.stack([WAVES, WAVES])
    tifffile.imwrite(tmp_path / "z.ome.tif", stack, photometric="rgb", metadata={"axes": "ZYXS"})
    with pytest.raises(InputError, match=r"ZYXS \(2, 480, 640, 3\) .*; save it as one"):
        open_slide(tmp_path / "z.ome.tif")


@pytest.mark.parametrize("options", [{}, {"tile": None, "rowsperstrip": 16}])
def test_sections_of_a_plain_tiff_are_reported(tmp_path, options):
    small, label = WAVES[:400, :500], np.full((60, 90, 3), 7, np.uint8)
    pages = [(image, options) for image in (label, small, WAVES)]
    path = write_tiff(tmp_path / "two.tif", *pages)
    assert open_slide(path).warnings == ("it holds 2 large images; only the largest is used",)
    np.testing.assert_array_equal(read_whole(path), WAVES)
    # Pages of one size become one series.
    path = write_tiff(tmp_path / "same.tif", (WAVES, options), (255 - WAVES, options))
    assert open_slide(path).warnings == ("it holds 2 large images; only the first is used",)
    np.testing.assert_array_equal(read_whole(path), WAVES)
    # Of the same shape, but not a smaller version: no level is reduced by 1.25.
    path = write_tiff(tmp_path / "shape.tif", (WAVES[:384, :512], options), (WAVES, options))
    assert open_slide(path).warnings == ("it holds 2 large images; only the largest is used",)
    path = write_tiff(tmp_path / "label.tif", (label, options), (WAVES, options))
    assert open_slide(path).warnings == ()
    np.testing.assert_array_equal(read_whole(path), WAVES)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", ["unspecified", "unassalpha", "assocalpha"])
def test_a_fourth_sample_is_transparency_if_the_file_says_so(tmp_path, kind, separate):
    half = np.full((480, 640), 100, np.uint8)
    half[:, :100] = 0
    color = WAVES
    if kind == "assocalpha":
        color = np.rint(WAVES * (half[..., None] / 255)).astype(np.uint8)
    image = np.dstack([color, half])
    options = {"extrasamples": [kind]}
    if separate:
        image, options = image.transpose(2, 0, 1), options | {"planarconfig": "separate"}
    path = write_tiff(tmp_path / "x.tif", (image, options))
    share = half[..., None] / 255
    expected = WAVES if kind == "unspecified" else WAVES * share + 255 * (1 - share)
    assert np.abs(read_whole(path) - expected).max() <= 1
    said = [warning for warning in open_slide(path).warnings if "ExtraSamples" in warning]
    assert len(said) == (kind == "unspecified")


def test_samples_beyond_color_are_dropped(tmp_path):
    many = np.dstack([WAVES, WAVES])
    path = write_tiff(tmp_path / "six.tif", (many, {"extrasamples": ["unspecified"] * 3}))
    np.testing.assert_array_equal(read_whole(path), WAVES)
    assert "3 further samples" in open_slide(path).warnings[0]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_slides_are_not_turned(tmp_path, orientation):
    tag = {"extratags": [(274, "H", 1, orientation, True)]}
    for name, chosen in (("t.tif", {}), ("s.tif", {"tile": None}), ("a.svs", {})):
        chosen = {**chosen, "description": APERIO} if name == "a.svs" else chosen
        path = write_tiff(tmp_path / name, (WAVES, tag | chosen))
        np.testing.assert_array_equal(read_whole(path), WAVES)
        said = f"its Orientation tag ({orientation}) is not obeyed, as in viewers of slides"
        assert open_slide(path, 0.5).warnings == (() if orientation == 1 else (said,))


@pytest.mark.parametrize("order", ["lm", "ml", "m", "mlml"])
def test_masks_of_transparency_are_not_levels(tmp_path, order):
    reduced = {"subfiletype": 1}
    mask = np.full((240, 320), 255, np.uint8), reduced | {"photometric": "minisblack"}
    level = WAVES[::2, ::2].copy(), reduced
    smaller = {"l": (WAVES[::4, ::4].copy(), reduced), "m": (mask[0][::2, ::2].copy(), mask[1])}
    pages = [{"l": level, "m": mask}[letter] for letter in order[:2]]
    pages += [smaller[letter] for letter in order[2:]]
    path = write_tiff(tmp_path / "m.tif", (WAVES, {}), *pages)
    with tifffile.TiffFile(path, mode="r+") as file:
        for page, letter in zip(file.pages[1:], order, strict=True):
            page.tags["NewSubfileType"].overwrite(5 if letter == "m" else 1)
    slide = open_slide(path)
    assert [level.downsample for level in slide.levels] == [1, 2, 4][: 1 + order.count("l")]
    assert slide.warnings == ()
    np.testing.assert_array_equal(read_whole(path), WAVES)
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
    path = write_tiff(tmp_path / "k.tif", (WAVES, {}), (level, {"subfiletype": 1, **options}))
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
    path = write_tiff(tmp_path / "d.svs", pages[0], label, pages[1])
    with pytest.raises(InputError, match=r"d\.svs: .* of uint16 .*; save it as one 8-bit RGB"):
        open_slide(path)
    with pytest.raises(InputError, match=r"d\.svs: .* of uint16 .*; save it as one 8-bit RGB"):
        tiff_headers.check_openslide(path)


def test_dyes_of_aperio_are_refused(tmp_path):
    gray = {"photometric": "minisblack", "description": APERIO + b"|Dye = DAPI"}
    path = write_tiff(tmp_path / "f.svs", *[(WAVES[..., c].copy(), gray) for c in range(3)])
    with pytest.raises(InputError, match=r"f\.svs: .*planes instead of colors; save it as one"):
        open_slide(path)
    path = write_tiff(tmp_path / "one.svs", (WAVES[..., 0].copy(), gray))
    with pytest.raises(InputError, match=r"one\.svs: fluorescence of one dye, not a stain; give"):
        open_slide(path)
    path = write_tiff(tmp_path / "gray.svs", (WAVES[..., 0].copy(), gray | {"description": APERIO}))
    np.testing.assert_array_equal(read_whole(path)[..., 1], WAVES[..., 0])


@pytest.mark.parametrize("photometric", ["miniswhite", "palette"])
def test_colors_that_only_openslide_knows(tmp_path, photometric):
    options = {"photometric": photometric, "resolution": None}
    if photometric == "palette":
        options["colormap"] = np.stack([np.arange(255, -1, -1) * 257] * 3).astype(np.uint16)
    path = write_tiff(tmp_path / "p.tif", (WAVES[..., 0].copy(), options))
    np.testing.assert_array_equal(read_whole(path)[..., 0], 255 - WAVES[..., 0])


@pytest.mark.parametrize("name", ["s.tif", "s.ome.tif"])
def test_small_sections_are_reported(tmp_path, name):
    large, small = draw_waves(1300, 1100), WAVES[:270, :300].copy()
    thumbnail, label = large[::4, ::4].copy(), WAVES[:200, :200].copy()
    pages = [(image, {}) for image in (large, small, thumbnail, label)]
    path = write_tiff(tmp_path / name, *pages)
    assert open_slide(path, 0.5).warnings == ("it holds 1 smaller image, left out",)
    path = write_tiff(tmp_path / "none.tif", *pages[:1], *pages[2:])
    assert open_slide(path, 0.5).warnings == ()
