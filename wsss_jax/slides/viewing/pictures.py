"""Encodes tiles."""

import io

import numpy as np
from PIL import Image

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
