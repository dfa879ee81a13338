"""Checks of compressed tiles and pictures: their claimed size, and whether they are whole."""

import struct
import warnings
from pathlib import Path

import numpy as np
import rasterio
import tifffile
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

_C = tifffile.COMPRESSION
JPEG = (_C.JPEG, _C.ALT_JPEG)
_JPEG_2000 = (_C.JPEG2000, _C.APERIO_JP2000_RGB, _C.APERIO_JP2000_YCBC)
# The compressions that are read. Other decoders trust damaged data and may end the process.
KNOWN = (
    *(_C.NONE, _C.LZW, _C.ADOBE_DEFLATE, _C.DEFLATE, _C.PACKBITS, _C.LZMA, _C.ZSTD),
    *(*JPEG, *_JPEG_2000, _C.WEBP, _C.PNG),
)
_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers that the size follows
_SCAN, _PROGRESSIVE, _END = 0xDA, b"\xff\xc2", b"\xff\xd9"
_ZEROS = bytes(32)  # only blank pictures have so many in a row
_MARGIN = 15  # pixels that a size may be rounded up by: JPEG works in blocks of 16
_ROWS = 256  # decoded at a time

# rasterio warns of pictures without geographic coordinates, as all of these are.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


def check_claim(
    data: bytes, compression: int, size: tuple[int, int], visible: tuple[int, int]
) -> None:
    """Refuses a tile whose own header has another size, or that does not end where it should.

    WebP is not checked here: its size is limited to 16,383 x 16,383, and its decoder checks it.
    Not noticed: changes inside JPEG 2000, and changes of data that are not compressed.

    Args:
      data: one tile or strip as it is stored.
      compression: TIFF's number.
      size: (width, height) by the file's tags.
      visible: (width, height) of the part inside the image.

    Raises:
      ValueError: the tile is damaged.
    """
    if compression in JPEG:
        claimed = _read_jpeg_size(data)
    elif compression in _JPEG_2000:
        claimed = _read_jpeg_2000_size(data)
    elif compression == _C.PNG:
        claimed = struct.unpack_from(">II", data, 16)
    else:
        return
    if any(
        not least <= own <= most + _MARGIN
        for own, most, least in zip(claimed, size, visible, strict=True)
    ):
        raise ValueError("a tile of {} x {} pixels instead of {} x {}".format(*claimed, *size))
    # Writers may fill up to an even number of bytes.
    if compression != _C.PNG and not data.rstrip(b"\0\xff").endswith(_END):
        raise ValueError("a tile without its end")


def _read_jpeg_size(data: bytes) -> tuple[int, int]:
    """Reads (width, height) from the header of a JPEG."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF and data[position + 1] != _SCAN:
        if data[position + 1] in _FRAME:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        fill = data[position + 1] == 0xFF
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if fill else 2 + length
    raise ValueError("a JPEG without a header")


def _read_jpeg_2000_size(data: bytes) -> tuple[int, int]:
    """Reads (width, height) from the header of a JPEG 2000 file or codestream."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise ValueError("JPEG 2000 without a header")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    return right - left, bottom - top


def check_jpeg_tile(data: bytes, tables: bytes | None, pixels: np.ndarray) -> None:
    """Refuses a JPEG tile of which a part is missing, though it was decoded to `pixels`.

    The decoder fills missing parts with gray, without a warning. Where the data has a run of zeros,
    or the last pixels are of one color, it is decoded again with warnings as errors: about 1 ms.
    Other changed bytes go unnoticed unless they break the Huffman code.

    Args:
      data: the tile as it is stored.
      tables: a JPEG with only the tables that the tile needs, if any.
      pixels: (h, w) or (h, w, channels) uint8.

    Raises:
      ValueError: the tile is damaged.
    """
    if not _may_be_damaged(data, pixels[-8:, -8:]):
        return
    whole = data if tables is None else data[:2] + tables[2:].removesuffix(_END) + data[2:]
    _decode_strictly(whole)


def check_jpeg_picture(path: Path, pixels: np.ndarray) -> None:
    """Refuses a JPEG file, decoded to `pixels` (turned or not), of which a part is missing.

    Raises:
      ValueError: the file is damaged.
    """
    data, ends = path.read_bytes(), (slice(8), slice(-8, None))
    if any(_may_be_damaged(data, pixels[rows, columns]) for rows in ends for columns in ends):
        _decode_strictly(data)


def _may_be_damaged(data: bytes, corner: np.ndarray) -> bool:
    return _ZEROS in data or _PROGRESSIVE in data or bool((corner == corner[-1, -1]).all())


def _decode_strictly(data: bytes) -> None:
    options = {"GDAL_ERROR_ON_LIBJPEG_WARNING": True, "GDAL_ALLOW_LARGE_LIBJPEG_MEM_ALLOC": True}
    try:
        # From memory: GDAL looks for other files beside a file.
        with (
            rasterio.Env(**options),
            MemoryFile(data) as file,
            file.open(driver="JPEG") as picture,
        ):
            for top in range(0, picture.height, _ROWS):
                rows = min(_ROWS, picture.height - top)
                picture.read(window=Window(0, top, picture.width, rows))
    except RasterioError as error:
        reason = str(error.__cause__ or error).rpartition("libjpeg: ")[2]
        raise ValueError(f"a part of the JPEG is missing: {reason}") from error
