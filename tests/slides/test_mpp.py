"""Micrometers per pixel, from metadata, from the user and from a table."""

import pytest
import tifffile

from data.synthetic_slides import write_arrays
from tests.slides.conftest import HEIGHT, WIDTH
from wsss_jax.errors import InputError
from wsss_jax.slides.reading.mpp import read_mpp_table
from wsss_jax.slides.reading.slide import check_mpp, open_slide
from wsss_jax.slides.reading.view import View


@pytest.mark.parametrize(("size", "unit"), [(0.5, "µm"), (500, "nm"), (0.0005, "mm")])
def test_units_of_ome(tmp_path, waves, size, unit):
    metadata = {"axes": "YXS"}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    path = tmp_path / "o.ome.tif"
    tifffile.imwrite(path, waves, photometric="rgb", tile=(256, 256), metadata=metadata)
    assert open_slide(path).mpp == pytest.approx(0.5)


def test_mpp_from_metadata_from_the_user_and_unknown(tmp_path, slides_dir, waves):
    slide = open_slide(slides_dir / "a.svs", 0.25)
    assert (slide.mpp, slide.metadata_mpp, check_mpp(slide)) == (0.25, 0.5, (0.25, 0.25))
    assert "says 0.5" in slide.warnings[0]
    assert open_slide(slides_dir / "a.svs", 0.52).warnings == ()
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


@pytest.mark.parametrize("text", ["nan", "inf", "-0.5", "1e400", ""])
def test_mpp_that_is_not_a_number_is_unknown(tmp_path, waves, text):
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


def test_mpp_table(tmp_path):
    path = tmp_path / "mpp.csv"
    path.write_text("\ufeffslide, mpp\na.svs,0.25\n\nb, 0.5\n", encoding="utf-8")
    assert read_mpp_table(path) == {"a.svs": 0.25, "b": 0.5}
    for text, message in (
        ("a.svs,0.25\n", r"mpp\.csv:1: .*slide,mpp"),
        ("slide,mpp\na.svs,0.25\nb\n", r"mpp\.csv:3: 'b' is not"),
        ("slide,mpp\na.svs,250\n", r"mpp\.csv:2: .*0\.25"),
        ("slide,mpp\na.svs,nan\n", r"mpp\.csv:2: "),
        ("slide,mpp\na,1\na,2\n", r"mpp\.csv:3: 'a' is given twice"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_mpp_table(path)
    with pytest.raises(InputError, match=r"none\.csv: No such file.*; name a CSV file with"):
        read_mpp_table(tmp_path / "none.csv")
    path.write_bytes(b"slide,mpp\n\xff\xfe")
    with pytest.raises(InputError, match=r"mpp\.csv: not a CSV file"):
        read_mpp_table(path)
