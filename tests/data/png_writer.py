"""Makes PNG files chunk by chunk, also invalid ones that no library writes."""

import struct
import zlib

import numpy as np


def make_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(
    width: int,
    height: int,
    pixels: bytes,
    *,
    bits: int = 8,
    color: int = 0,
    interlaced: bool = False,
    extra: bytes = b"",
    compressed: bytes | None = None,
) -> bytes:
    """Makes a PNG file; `pixels` are its rows, each after the byte of its filter (0 for none)."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    data = zlib.compress(pixels) if compressed is None else compressed
    parts = make_chunk(b"IHDR", header), extra, make_chunk(b"IDAT", data), make_chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def make_rows(array: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in array)
