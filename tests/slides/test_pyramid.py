import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import pyramid

PALETTE = [(205, 51, 51), (0, 255, 0), (65, 105, 225), (255, 255, 255)]
NAMES = ["TE", "µ<&>", "TAS"]
LEGEND = Legend(NAMES, PALETTE)
RNG = np.random.default_rng(0)


def make_reader(array):
    """A `read_rows` of an array that refuses to read too many rows at a time."""

    def read(y0, y1, step):
        assert 0 <= y0 < y1 <= len(array) and -(-(y1 - y0) // step) <= 1024
        return array[y0:y1:step, ::step]

    return read


def make_frame(shape):
    height, width = shape
    return MapFrame(width, height, 0.5027, (1, 1), (width, height))


def write(path, labels):
    pyramid.write_label_map(path, make_reader(labels), make_frame(labels.shape), LEGEND)


@pytest.mark.parametrize(
    ("size", "levels"),
    [((1, 1), 1), ((1, 513), 2), ((700, 1), 2), ((512, 512), 1), ((2051, 1500), 4)],
)
def test_levels_are_every_second_pixel_of_the_map(tmp_path, size, levels):
    labels = RNG.integers(0, 4, size).astype(np.uint8)
    write(tmp_path / "map.ome.tif", labels)
    with tifffile.TiffFile(tmp_path / "map.ome.tif") as tiff:
        (series,) = tiff.series
        assert len(tiff.pages) == 1 and len(series.levels) == levels
        for number, level in enumerate(series.levels):
            step = 2**number
            np.testing.assert_array_equal(level.asarray(), labels[::step, ::step])
            page = level.keyframe
            assert page.tile == (512, 512) and page.compression == 8
            assert page.subfiletype == (number > 0)
            assert page.resolution == pytest.approx((1e4 / 0.5027 / step,) * 2)
            assert (page.colormap.T[:4] == np.array(PALETTE) * 257).all()
        assert max(series.levels[-1].shape) <= 512


def test_other_programs_see_colors_pixel_size_and_names(tmp_path):
    labels = RNG.integers(0, 4, (60, 50)).astype(np.uint8)
    path = tmp_path / "map.ome.tif"
    write(path, labels)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (50, 60)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5027)
        colors = np.array(slide.read_region((0, 0), 0, (50, 60)))[..., :3]
        np.testing.assert_array_equal(colors, np.array(PALETTE)[labels])
    xml = tifffile.tiffcomment(path)
    assert 'PhysicalSizeX="0.5027" PhysicalSizeXUnit="µm"' in xml
    assert re.findall('<M K="(.)">(.*?)</M>', xml) == [
        ("0", "TE"),
        ("1", "µ&lt;&amp;&gt;"),
        ("2", "TAS"),
        ("3", "excluded"),
    ]


def test_the_same_map_makes_the_same_bytes(tmp_path):
    labels = RNG.integers(0, 4, (600, 700)).astype(np.uint8)
    for folder in ("a", "b"):
        write(tmp_path / folder / "map.ome.tif", labels)
    one, two = ((tmp_path / folder / "map.ome.tif").read_bytes() for folder in ("a", "b"))
    assert one == two


def test_large_files_are_big_tiff(tmp_path, monkeypatch):
    labels = RNG.integers(0, 4, (30, 600)).astype(np.uint8)
    for limit, big in ((2**31, False), (labels.size, True)):
        monkeypatch.setattr(pyramid, "CLASSIC_BYTES", limit)
        write(tmp_path / "map.ome.tif", labels)
        with tifffile.TiffFile(tmp_path / "map.ome.tif") as tiff:
            assert tiff.is_bigtiff == big
            np.testing.assert_array_equal(tiff.series[0].asarray(), labels)


def write_colors(path, labels):
    pyramid.write_color_map(path, make_reader(labels), make_frame(labels.shape), LEGEND)


@pytest.mark.parametrize(
    ("size", "levels"), [((1, 1), 1), ((700, 1), 2), ((512, 512), 1), ((2051, 1500), 4)]
)
def test_colors_are_a_pyramid_that_openslide_reads(tmp_path, size, levels):
    labels = RNG.integers(0, 4, size).astype(np.uint8)
    path = tmp_path / "rgb.tif"
    write_colors(path, labels)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == levels and slide.dimensions == size[::-1]
        for axis in "xy":
            assert float(slide.properties[f"openslide.mpp-{axis}"]) == pytest.approx(0.5027)
        for level in range(levels):
            shape = slide.level_dimensions[level]
            colors = np.array(slide.read_region((0, 0), level, shape))[..., :3]
            np.testing.assert_array_equal(
                colors, np.array(PALETTE)[labels[:: 2**level, :: 2**level]]
            )
    write_colors(tmp_path / "again.tif", labels)
    assert path.read_bytes() == (tmp_path / "again.tif").read_bytes()


def test_tiles_of_one_value_are_compressed_once(tmp_path, monkeypatch):
    real, compressed = imagecodecs.deflate_encode, []

    def count(pixels):
        compressed.append(pixels)
        return real(pixels)

    monkeypatch.setattr(imagecodecs, "deflate_encode", count)
    # Two threads may both be the first to see a value.
    monkeypatch.setattr(pyramid, "ThreadPoolExecutor", partial(ThreadPoolExecutor, 1))
    labels = np.full((3 * 512, 5 * 512 + 100), 3, np.uint8)
    labels[:512, :1024] = 1
    labels[700, 700] = 2
    write_colors(tmp_path / "rgb.tif", labels)
    others = 4 + 6 + 2 + 1  # tiles of each level that are mixed or at the border
    assert len(compressed) == others + 2  # white and green
    with tifffile.TiffFile(tmp_path / "rgb.tif") as tiff:
        for level, page in enumerate(tiff.pages):
            step = 2**level
            np.testing.assert_array_equal(page.asarray(), np.array(PALETTE)[labels[::step, ::step]])
        assert len(tiff.pages) == 4 and len(tiff.pages[0].dataoffsets) == 18


def _pyvips(path):
    pyvips = pytest.importorskip("pyvips")
    image = pyvips.Image.new_from_file(path)
    return image.numpy()[..., :3], 1 / image.xres * 1000


def _tiatoolbox(path):
    reader = pytest.importorskip("tiatoolbox.wsicore.wsireader").WSIReader.open(path)
    assert len(reader.info.level_dimensions) == 3
    size = reader.info.slide_dimensions
    return reader.read_rect((0, 0), size, resolution=0, units="level"), reader.info.mpp[0]


def _large_image(path):
    source = pytest.importorskip("large_image_source_tiff").TiffFileTileSource(str(path))
    assert source.getMetadata()["levels"] == 3
    colors, _ = source.getRegion(format="numpy")
    return colors[..., :3], source.getNativeMagnification()["mm_x"] * 1000


def _bioio(path):
    image = pytest.importorskip("bioio_tifffile").Reader(path)
    return np.squeeze(image.data), image.physical_pixel_sizes.X


@pytest.mark.parametrize("read", [_pyvips, _tiatoolbox, _large_image, _bioio])
def test_other_readers_see_the_same_colors(tmp_path, read):
    labels = RNG.integers(0, 4, (1400, 1100)).astype(np.uint8)
    write_colors(tmp_path / "rgb.tif", labels)
    colors, mpp = read(tmp_path / "rgb.tif")
    np.testing.assert_array_equal(colors, np.array(PALETTE)[labels])
    assert mpp == pytest.approx(0.5027, rel=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1100, 530)])
def test_probabilities_are_a_channel_a_class(tmp_path, size):
    maps = RNG.integers(0, 256, (3, *size)).astype(np.uint8)
    path = tmp_path / "probabilities.ome.tif"
    pyramid.write_probability_maps(
        path,
        lambda channel, *rows: make_reader(maps[channel])(*rows),
        make_frame(size),
        LEGEND,
    )
    with tifffile.TiffFile(path) as tiff:
        (series,) = tiff.series
        assert series.axes == "CYX" and len(series.levels) == (1 if size == (1, 1) else 3)
        for number, level in enumerate(series.levels):
            np.testing.assert_array_equal(level.asarray(), maps[:, :: 2**number, :: 2**number])
        channels = re.findall(r'<Channel [^>]*Name="(.*?)" Color="(.*?)"', tiff.ome_metadata)
    assert channels[0] == ("TE", str((205 << 24 | 51 << 16 | 51 << 8 | 255) - 2**32))
    assert [name for name, _ in channels] == ["TE", "µ&lt;&amp;&gt;", "TAS"]
