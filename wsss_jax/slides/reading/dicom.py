"""DICOM slides: finding the files of a slide, opening it by OpenSlide or wsidicom (optional)."""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading.raw_slide import CONVERT, RawSlide, get_first_line, parse_number

_HEADER_BYTES = 1 << 18
_FRAME_BYTES = 128 << 20  # of a decoded frame
_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image
_IMPLICIT = "1.2.840.10008.1.2"  # transfer syntax: elements do not name their types
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()  # types whose length has four bytes
_SYNTAX, _CLASS, _SERIES = (0x0002, 0x0010), (0x0008, 0x0016), (0x0020, 0x000E)
_FRAMES, _ROWS, _COLUMNS = (0x0028, 0x0008), (0x0028, 0x0010), (0x0028, 0x0011)
_PATHS, _PATH, _PATH_COUNT = (0x0048, 0x0105), (0x0048, 0x0106), (0x0048, 0x0302)
_OFFSETS, _PIXELS = (0x7FE0, 0x0001), (0x7FE0, 0x0010)
_WANTED = (_SYNTAX, _CLASS, _SERIES, _FRAMES, _ROWS, _COLUMNS, _PATH_COUNT, _OFFSETS)
_UNDEFINED = 0xFFFFFFFF


class DicomFiles(NamedTuple):
    """The .dcm files of a folder.

    Attributes:
      slides: the files of each slide (a series of whole-slide images), sorted, by their first file.
      unreadable: files without a DICOM header.
      other: DICOM of other kinds.
    """

    slides: list[list[Path]]
    unreadable: list[Path]
    other: list[Path]


def is_hidden(path: Path) -> bool:
    """Whether a file name begins with a dot, like the files that macOS adds to a folder."""
    return path.name.startswith(".")


def group_files(folder: Path) -> DicomFiles:
    """Groups the .dcm files of a folder by slide; hidden files are skipped."""
    slides: dict[str, list[Path]] = {}
    files = DicomFiles([], [], [])
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".dcm" or is_hidden(path) or path.is_dir():
            continue
        header = _read_header(path)
        if header.series and header.kind == _SLIDE_CLASS:
            slides.setdefault(header.series, []).append(path)
        else:
            (files.other if header.series else files.unreadable).append(path)
    files.slides.extend(slides.values())
    return files


class _Header(NamedTuple):
    """The fields of a file's header; "" and 0 where it does not have them."""

    kind: str = ""
    series: str = ""
    frames: int = 0
    rows: int = 0
    columns: int = 0


def read_series(path: Path) -> str:
    """Reads the identifier that all files of a slide share; "" if there is none."""
    return _read_header(path).series


def find_slide_files(path: Path) -> list[Path]:
    """Finds the files of the slide that a .dcm file belongs to; itself alone without a header."""
    return next((files for files in group_files(path.parent).slides if path in files), [path])


def list_slide_files(path: Path) -> list[Path]:
    """Lists the files of a slide that is a folder with one, or one of its .dcm files."""
    return _select_files(path)[0] if path.is_dir() else find_slide_files(path)


def _read_header(path: Path) -> _Header:
    if not path.is_file():
        return _Header()
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
    except OSError:
        return _Header()  # opening the slide gives the reason
    if data[128:132] != b"DICM":
        return _Header()
    elements = _parse_elements(data, _COLUMNS)
    rows, columns = (
        int.from_bytes(elements.get(tag, b"")[:2], "little") for tag in (_ROWS, _COLUMNS)
    )
    frames = int(parse_number(_decode_text(elements.get(_FRAMES))) or 0)
    kind, series = _decode_text(elements.get(_CLASS)), _decode_text(elements.get(_SERIES))
    return _Header(kind, series, frames, rows, columns)


def _decode_text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace").strip("\0 ")


def _check_frames(path: Path) -> None:
    """Refuses frames that would make OpenSlide end the process: too large, or at wrong offsets.

    Raises:
      InputError: such frames, or frames of several optical paths.
    """
    header = _read_header(path)
    if 3 * header.rows * header.columns > _FRAME_BYTES:
        raise InputError(
            f"{path}: frames of {header.columns} x {header.rows} pixels, which need too much "
            f"memory; {CONVERT}"
        )
    if header.frames > path.stat().st_size:
        raise InputError(
            f"{path}: cut short, it has {header.frames:,} frames; copy the slide again"
        )
    if not header.series:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        elements, file_bytes = _parse_elements(data, _PIXELS), len(data)
    for tag, kind in ((_OFFSETS, "<u8"), (_PIXELS, "<u4")):
        table, item = elements.get(tag, b""), np.dtype(kind).itemsize
        offsets = np.frombuffer(table[: len(table) // item * item], kind).astype(np.int64)
        damaged = len(offsets) < header.frames or (np.diff(offsets, append=file_bytes) <= 0).any()
        if len(table) and damaged:
            raise InputError(f"{path}: its table of frames is damaged; copy the slide again")
    paths = {path.strip(b"\0 ") for path in elements.get(_PATH, b"").split(b"\\")}
    count = int.from_bytes(elements.get(_PATH_COUNT, b"")[:2], "little")
    _check_optical_paths(path, max(len(paths), count))


def _check_optical_paths(path: Path, count: int) -> None:
    if count > 1:
        raise InputError(
            f"{path}: {count} optical paths instead of colors; save it as one 8-bit RGB picture"
        )


def _parse_elements(data: bytes | mmap.mmap, last: tuple[int, int]) -> dict[tuple[int, int], bytes]:
    """Parses the wanted elements of a file in little-endian order, outside of sequences.

    The file's meta information, group 2, always names the types; the other groups follow the
    transfer syntax. Of the pixels it returns the table of frame offsets, of the optical paths all
    identifiers.
    """
    elements: dict[tuple[int, int], bytes] = {}
    paths: dict[bytes, None] = {}
    position, depth = 132, 0
    while position + 8 <= len(data):
        tag = struct.unpack_from("<HH", data, position)
        if tag[0] == 0xFFFE:  # an item, or the end of an item or a sequence
            depth -= tag[1] == 0xE0DD
            position += 8
            continue
        if depth == 0 and tag > last:
            break
        kind = data[position + 4 : position + 6]
        if tag[0] > 2 and _decode_text(elements.get(_SYNTAX)) == _IMPLICIT:
            (length,), position = struct.unpack_from("<I", data, position + 4), position + 8
        elif kind in _LONG:
            length = int.from_bytes(data[position + 8 : position + 12], "little")
            position += 12
        else:
            (length,), position = struct.unpack_from("<H", data, position + 6), position + 8
        if depth == 0 and tag == _PIXELS:
            size = int.from_bytes(data[position + 4 : position + 8], "little")
            table = data[position + 8 : position + 8 + size]
            elements[tag] = table if length == _UNDEFINED else b""
            break
        if length == _UNDEFINED:
            depth += 1
            continue
        if tag == _PATHS:
            continue  # on to the items of the sequence
        if tag == _PATH:
            paths[data[position : position + length]] = None
        if depth == 0 and tag in _WANTED:
            elements[tag] = data[position : position + length]
        position += length
    if paths:
        elements[_PATH] = b"\\".join(paths)
    return elements


def open_dicom(path: Path, open_openslide: Callable[[Path, str], RawSlide]) -> RawSlide:
    """Opens a DICOM slide.

    Args:
      path: a folder with the .dcm files of one slide, or one of the files.
      open_openslide: opens a file of a format by OpenSlide.

    Raises:
      InputError: not a DICOM slide, several, a damaged one, or one that needs wsidicom, which is
        not installed.
    """
    folder = path if path.is_dir() else path.parent
    for member in folder.iterdir():
        if member.exists() and not member.is_dir():
            check_regular(member)  # OpenSlide opens every file of the folder
    files, notes = _select_files(folder) if path == folder else (find_slide_files(path), ())
    # OpenSlide takes hidden files and other endings of the same series, too.
    series = {_read_header(file).series for file in files} - {""}
    others = sorted(path for path in folder.iterdir() if path not in files)
    for file in (*files, *(path for path in others if _read_header(path).series in series)):
        _check_frames(file)
    reason = "another kind than it knows"
    try:
        # From any file OpenSlide finds the others of its series.
        if openslide.OpenSlide.detect_format(str(files[0])) == "dicom":
            return open_openslide(files[0], "dicom").add_notes(notes)
    except openslide.OpenSlideError as error:
        reason = get_first_line(error)  # wsidicom reads more kinds
    return _open_wsidicom(path, files, reason).add_notes(notes)


def _select_files(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Selects the files of the only slide of a folder; returns them and notes on others."""
    inside = group_files(folder)
    if not any(inside):
        raise InputError(f"{folder}: a folder without .dcm files; name a slide")
    if len(inside.slides) > 1:
        names = ", ".join(files[0].name for files in inside.slides)
        raise InputError(
            f"{folder}: {len(inside.slides)} slides in one folder ({names}); name one of these "
            "files, or give each slide a folder"
        )
    if not inside.slides:
        return [*inside.unreadable, *inside.other], ()
    if not inside.unreadable:
        return inside.slides[0], ()
    names = ", ".join(file.name for file in inside.unreadable)
    return inside.slides[0], (f"files that are no DICOM are left out: {names}",)


def _open_wsidicom(path: Path, files: list[Path], reason: str) -> RawSlide:
    """Opens a slide by wsidicom; `reason` says why OpenSlide could not."""
    try:
        import wsidicom
    except ImportError as error:
        raise InputError(
            f"{path}: OpenSlide cannot read this DICOM ({reason}); pip install wsidicom, or "
            "convert the slide"
        ) from error
    try:
        handle = wsidicom.WsiDicom.open(files)
        levels = list(handle.pyramid)
        mpp = handle.mpp
        optical_paths, focal_planes = levels[0].optical_paths, levels[0].focal_planes
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, its own and pydicom's
        raise InputError(
            f"{path}: not a whole DICOM slide ({get_first_line(error)}); copy it again"
        ) from error
    try:
        _check_optical_paths(path, len(optical_paths))
    except InputError:
        handle.close()
        raise

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        region = handle.read_region((x, y), levels[level].level, (width, height))
        return np.asarray(region.convert("RGB"))

    notes = []
    if (planes := len(focal_planes)) > 1:
        notes.append(f"it has {planes} focal planes; only the middle one is used")
    if (pyramids := len(handle.pyramids)) > 1:
        notes.append(f"it holds {pyramids} large images; only the first is used")
    return RawSlide(
        sizes=tuple((level.size.width, level.size.height) for level in levels),
        read=read,
        close=handle.close,
        vendor="dicom",
        mpp=(mpp.width, mpp.height),
        notes=tuple(notes),
    )
