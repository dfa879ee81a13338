"""The zip archives of `torch.save`, PyTorch 1.6 and later: uncompressed, up to 4 GiB.

An archive is not trusted. The standard library's `zipfile` writes it but does not read it: it
reads directories of any size and takes nine times their memory.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from io import BufferedReader
from typing import BinaryIO, NamedTuple

import numpy as np

from wsss_jax.interop.torch_bytes import RESAVE, ContentsError, DamageError, quote, read_bytes

SIGNATURE = b"PK\x03\x04"  # of an entry, so of the whole file

_MAX_DIRECTORY = 2**21  # bytes
_HEADER = struct.Struct("<4s22x2H")
_DIRECTORY_ENTRY = struct.Struct("<4s6H3I5H2I")
_DIRECTORY_END = struct.Struct("<4s4H2IH")
_ALIGNMENT = 64  # of a storage in the file, in bytes, as PyTorch has it
_PADDING = 0x4246  # type of the extra field that aligns a storage; nobody reads it


class Entry(NamedTuple):
    """Where the directory says an entry is, its size in bytes, and its checksum."""

    offset: int
    size: int
    crc: int


def read_directory(file: BufferedReader) -> dict[str, Entry]:
    """Lists the entries of an archive by name; together they are no larger than the file.

    Raises:
      InputError: the directory is damaged, or an entry is compressed or encrypted.
    """
    file_size = os.fstat(file.fileno()).st_size
    file.seek(max(file_size - _DIRECTORY_END.size, 0))
    end = read_bytes(file, _DIRECTORY_END.size)
    signature, *_, length, offset, _ = _DIRECTORY_END.unpack(end)
    if signature != b"PK\x05\x06":
        raise DamageError("the end of the zip file is missing")
    if length > _MAX_DIRECTORY:
        raise DamageError("the directory of the zip file is too large")
    file.seek(offset)
    directory = file.read(length)
    entries: dict[str, Entry] = {}
    position = total = 0
    while position < length:
        try:
            fields = _DIRECTORY_ENTRY.unpack_from(directory, position)
        except struct.error as error:
            raise DamageError("the directory of the zip file is cut short") from error
        signature, _, _, flags, method, _, _, crc, packed, size, *lengths = fields[:13]
        position += _DIRECTORY_ENTRY.size
        name = directory[position : position + lengths[0]].decode(errors="replace")
        position += sum(lengths)
        total += size
        if signature != b"PK\x01\x02" or name in entries or total > file_size:
            raise DamageError("the directory of the zip file contradicts itself")
        if flags & 1 or method or packed != size:
            raise ContentsError(f"entry {quote(name)} is compressed or encrypted; {RESAVE}")
        entries[name] = Entry(fields[-1], size, crc)
    return entries


def read_entry(file: BufferedReader, entry: Entry) -> np.ndarray:
    """Reads the contents of an entry, uint8.

    Raises:
      InputError: it is not where the directory says, or its checksum does not match.
    """
    file.seek(entry.offset)
    signature, *lengths = _HEADER.unpack(read_bytes(file, _HEADER.size))
    if signature != SIGNATURE:
        raise DamageError("an entry of the zip file is not where the directory says")
    file.seek(sum(lengths), os.SEEK_CUR)
    data = read_bytes(file, entry.size)
    if zlib.crc32(data) != entry.crc:
        raise DamageError("a checksum does not match")
    return data


def write_archive(file: BinaryIO, entries: Iterable[tuple[str, bytes | np.ndarray]]) -> None:
    """Writes an archive in which the contents of every entry are aligned as PyTorch aligns them.

    Args:
      file: opened for writing.
      entries: names and contents.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, contents in entries:
            entry = zipfile.ZipInfo(name)
            entry.file_size = memoryview(contents).nbytes
            header = _HEADER.size + len(entry.filename) + 4
            padding = -(file.tell() + header) % _ALIGNMENT
            entry.extra = struct.pack("<2H", _PADDING, padding) + bytes(padding)
            with archive.open(entry, "w") as target:
                target.write(contents)
