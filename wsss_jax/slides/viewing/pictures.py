"""Encodes tiles."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from wsss_jax.slides.viewing.tissue_tiles import TissueTiles

_PLACE = 240  # pixels, longer side of the picture of a place that deserves a look
_QUALITY = 85  # of JPEG


def encode_tissue(pixels: np.ndarray) -> bytes:
    """Encodes (height, width, 3) uint8 as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def encode_gray(pixels: np.ndarray) -> bytes:
    """Encodes (height, width) uint8 as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # most of the time is this
    return file.getvalue()


def draw_place(tissue: TissueTiles, box: Sequence[float]) -> bytes:
    """Draws a part of a slide, left, top, width and height in level-0 pixels, as a small JPEG."""
    return encode_tissue(tissue.read_box(box, _PLACE))
