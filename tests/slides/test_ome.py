"""OME-TIFF: sets of files, and metadata of other images."""

import os

import numpy as np
import pytest

from data.synthetic_slides import draw_waves
from tests.slides.tiff_writer import (
    WAVES,
    make_image,
    make_tiff_data,
    write_ome,
)
from wsss_jax.errors import InputError
from wsss_jax.slides.reading.slide import open_slide


def test_missing_files_of_an_ome_set_are_named(tmp_path):
    parts = "".join(make_tiff_data(index, f"c{index}.ome.tif", index + 1) for index in range(3))
    path = write_ome(tmp_path / "c0.ome.tif", make_image(parts, 3))
    with pytest.raises(InputError, match=r"which are missing: c1\.ome\.tif, c2\.ome\.tif; copy"):
        open_slide(path)
    # A pipe under the name of a part is not opened: that would wait forever.
    (tmp_path / "c1.ome.tif").touch()
    os.mkfifo(tmp_path / "c2.ome.tif")
    with pytest.raises(InputError, match=r"c2\.ome\.tif: a named pipe, not a file"):
        open_slide(path)
    companion = '<BinaryOnly MetadataFile="slide.companion.ome" UUID="urn:uuid:2"/>'
    path = write_ome(tmp_path / "binary.ome.tif", companion)
    with pytest.raises(InputError, match=r"slide\.companion\.ome, which is missing; save it as"):
        open_slide(path)
    # A renamed file is complete.
    path = write_ome(
        tmp_path / "renamed.ome.tif", make_image(make_tiff_data(0, "before.ome.tif", 1))
    )
    assert open_slide(path, 0.5).read(0, 0, 0, 640, 480)[..., 0].tolist() == WAVES[..., 0].tolist()
    # The metadata counts planes that the file does not have.
    path = write_ome(tmp_path / "short.ome.tif", make_image("<TiffData/>", 3))
    with pytest.raises(InputError, match=r"short\.ome\.tif: .*; save it"):
        open_slide(path)


@pytest.mark.parametrize("name", ["a.ome.tif", "b.ome.tif"])
def test_each_file_of_an_ome_set_is_read_by_itself(tmp_path, name):
    """Two images, each in a file of its own, with the metadata of both."""
    images = {"a.ome.tif": (WAVES, 0.5), "b.ome.tif": (255 - WAVES, 0.25)}
    if name == "a.ome.tif":
        images["b.ome.tif"] = draw_waves(900, 700), 0.25
    body = "".join(
        make_image(make_tiff_data(0, file, number), 3).replace(
            'SizeX="640" SizeY="480"',
            f'SizeX="{image.shape[1]}" SizeY="{image.shape[0]}" PhysicalSizeX="{mpp}" '
            f'PhysicalSizeY="{mpp}"',
        )
        for number, (file, (image, mpp)) in enumerate(images.items(), start=1)
    ).replace("<TiffData", '<Channel SamplesPerPixel="3"/><TiffData')
    for number, (file, (image, _)) in enumerate(images.items(), start=1):
        write_ome(tmp_path / file, body, image, number)
    image, mpp = images.pop(name)
    slide = open_slide(tmp_path / name)
    assert slide.mpp == mpp
    np.testing.assert_array_equal(slide.read(0, 0, 0, slide.width, slide.height), image)
    (other,) = images
    assert slide.warnings == (f"its metadata names images of other files, too: {other}",)


def test_pixels_in_another_file_are_refused(tmp_path):
    body = make_image(make_tiff_data(0, "b.ome.tif", 2))
    write_ome(tmp_path / "a.ome.tif", body, WAVES[..., 0], 1)
    write_ome(tmp_path / "b.ome.tif", body, 255 - WAVES[..., 0], 2)
    with pytest.raises(InputError, match=r"a\.ome\.tif: its pixels are in b\.ome\.tif; name that"):
        open_slide(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("body", [make_image("<TiffData/>").replace("480", "960"), ""])
def test_ome_metadata_of_another_image_is_ignored(tmp_path, body):
    body = body.replace("<Pixels", '<Pixels PhysicalSizeX="0.5" PhysicalSizeY="0.5"')
    slide = open_slide(write_ome(tmp_path / "x.ome.tif", body))
    assert slide.mpp is None
    assert slide.warnings[0].startswith("its OME metadata describes no image of its size")
