"""Writes TIFF files of many kinds for tests."""

from pathlib import Path

import numpy as np
import tifffile

from data.synthetic_slides import draw_waves
from wsss_jax.slides.reading.slide import open_slide

TILED = {"tile": (256, 256), "compression": "deflate", "metadata": None}
HALF = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 µm per pixel
WAVES = draw_waves(640, 480)
APERIO = b"Aperio Image Library v1\r\n|MPP = 0.5"


def write_tiff(path: Path, *pages: tuple[np.ndarray, dict], **options) -> Path:
    """Writes pages, each an image with options of tifffile, tiled and of 0.5 µm by default."""
    with tifffile.TiffWriter(path, **options) as writer:
        for image, chosen in pages:
            writer.write(image, **{"photometric": "rgb", **TILED, **HALF, **chosen})
    return path


def read_whole(path: Path) -> np.ndarray:
    """Reads level 0 of a slide."""
    slide = open_slide(path, 0.5)
    return slide.read(0, 0, 0, slide.width, slide.height)


def write_ome(path: Path, body: str, image: np.ndarray = WAVES[..., 0], number: int = 1) -> Path:
    """Writes one image, with OME metadata of a body and the UUID `number`."""
    head = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/'
    xml = f'{head}Schemas/OME/2016-06" UUID="urn:uuid:{number}">{body}</OME>'
    photometric = "rgb" if image.ndim == 3 else "minisblack"
    tifffile.imwrite(path, image, photometric=photometric, description=xml.encode(), metadata=None)
    return path


def make_image(parts: str, planes: int = 1) -> str:
    """Makes OME metadata of an image of 640 x 480 pixels."""
    return (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="640"'
        f' SizeY="480" SizeC="{planes}" SizeZ="1" SizeT="1">{parts}</Pixels></Image>'
    )


def make_tiff_data(channel: int, name: str, uuid: int) -> str:
    """Makes OME metadata of a plane in the file `name`."""
    return (
        f'<TiffData FirstC="{channel}" IFD="0" PlaneCount="1"><UUID FileName="{name}">'
        f"urn:uuid:{uuid}</UUID></TiffData>"
    )
