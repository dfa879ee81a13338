"""DICOM slides: which files are one slide, and opening it by OpenSlide or wsidicom (optional)."""

import dataclasses
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading.opened import CONVERT, Opened, number, one_line

_HEADER_BYTES = 1 << 18
_FRAME_BYTES = 128 << 20  # of a decoded frame
_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image
_IMPLICIT = "1.2.840.10008.1.2"  # transfer syntax: no types in the elements
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()  # types whose length has four bytes
_SYNTAX, _CLASS, _SERIES = (0x0002, 0x0010), (0x0008, 0x0016), (0x0020, 0x000E)
_FRAMES, _ROWS, _COLUMNS = (0x0028, 0x0008), (0x0028, 0x0010), (0x0028, 0x0011)
_PATHS, _PATH, _PATH_COUNT = (0x0048, 0x0105), (0x0048, 0x0106), (0x0048, 0x0302)
_OFFSETS, _PIXELS = (0x7FE0, 0x0001), (0x7FE0, 0x0010)
_WANTED = (_SYNTAX, _CLASS, _SERIES, _FRAMES, _ROWS, _COLUMNS, _PATH_COUNT, _OFFSETS)
_UNDEFINED = 0xFFFFFFFF


class Files(NamedTuple):
    """The .dcm files of a folder.

    Attributes:
      slides: those of each slide (series of whole-slide images), sorted, by their first file.
      unreadable: without a header of DICOM.
      other: DICOM of other kinds.
    """

    slides: list[list[Path]]
    unreadable: list[Path]
    other: list[Path]


def is_hidden(path: Path) -> bool:
    """Whether a file's name begins with a dot, as those that macOS leaves beside others."""
    return path.name.startswith(".")


def files_in(folder: Path) -> Files:
    """The .dcm files of a folder by slide; hidden ones are passed over."""
    slides: dict[str, list[Path]] = {}
    found = Files([], [], [])
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".dcm" or is_hidden(path) or path.is_dir():
            continue
        header = _header(path)
        if header.series and header.kind == _SLIDE_CLASS:
            slides.setdefault(header.series, []).append(path)
        else:
            (found.other if header.series else found.unreadable).append(path)
    found.slides.extend(slides.values())
    return found


class _Header(NamedTuple):
    """What a file's header says; "" and 0 where it does not."""

    kind: str = ""
    series: str = ""
    frames: int = 0
    rows: int = 0
    columns: int = 0


def series_of(path: Path) -> str:
    """The identifier that all files of a slide have; "" if there is none to be read."""
    return _header(path).series


def files_of(path: Path) -> list[Path]:
    """The files of the slide that a .dcm file is of; itself alone if its header says nothing."""
    for files in files_in(path.parent).slides:
        if path in files:
            return files
    return [path]


def _header(path: Path) -> _Header:
    if not path.is_file():
        return _Header()
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
    except OSError:
        return _Header()  # opening it says why
    if data[128:132] != b"DICM":
        return _Header()
    found = _elements(data, _COLUMNS)
    kind, series = _text(found.get(_CLASS)), _text(found.get(_SERIES))
    rows, columns = (int.from_bytes(found.get(tag, b"")[:2], "little") for tag in (_ROWS, _COLUMNS))
    return _Header(kind, series, int(number(_text(found.get(_FRAMES))) or 0), rows, columns)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace").strip("\0 ")


def _check_frames(path: Path) -> None:
    """Refuses frames that OpenSlide would end the process over: too large, or not where it says.

    Raises:
      InputError: likewise; or frames of several optical paths.
    """
    header = _header(path)
    if 3 * header.rows * header.columns > _FRAME_BYTES:
        raise InputError(
            f"{path}: frames of {header.columns} x {header.rows} pixels, which need too much "
            f"memory; {CONVERT}"
        )
    if header.frames > path.stat().st_size:
        raise InputError(f"{path}: {header.frames:,} frames, but cut short; copy the slide again")
    if not header.series:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, file_bytes = _elements(data, _PIXELS), len(data)
    for tag, kind in ((_OFFSETS, "<u8"), (_PIXELS, "<u4")):
        table, item = found.get(tag, b""), np.dtype(kind).itemsize
        offsets = np.frombuffer(table[: len(table) // item * item], kind).astype(np.int64)
        damaged = len(offsets) < header.frames or (np.diff(offsets, append=file_bytes) <= 0).any()
        if len(table) and damaged:
            raise InputError(f"{path}: its table of frames is damaged; copy the slide again")
    paths = {path.strip(b"\0 ") for path in found.get(_PATH, b"").split(b"\\")}
    count = int.from_bytes(found.get(_PATH_COUNT, b"")[:2], "little")
    _check_optical_paths(path, max(len(paths), count))


def _check_optical_paths(path: Path, count: int) -> None:
    if count > 1:
        raise InputError(
            f"{path}: {count} optical paths, which are no colors; save it as one 8-bit RGB picture"
        )


def _elements(data: bytes | mmap.mmap, last: tuple[int, int]) -> dict[tuple[int, int], bytes]:
    """The elements wanted of a file in little-endian order, but for those inside of sequences.

    The file's meta information, group 2, always names the types; the rest as its syntax says. Of
    the pixels it is the table of offsets of the frames, of the optical paths all identifiers.
    """
    found: dict[tuple[int, int], bytes] = {}
    paths: dict[bytes, None] = {}
    position, depth = 132, 0
    while position + 8 <= len(data):
        tag = struct.unpack_from("<HH", data, position)
        if tag[0] == 0xFFFE:  # an item, or the end of one or of a sequence
            depth -= tag[1] == 0xE0DD
            position += 8
            continue
        if depth == 0 and tag > last:
            break
        kind = data[position + 4 : position + 6]
        if tag[0] > 2 and _text(found.get(_SYNTAX)) == _IMPLICIT:
            (length,), position = struct.unpack_from("<I", data, position + 4), position + 8
        elif kind in _LONG:
            length = int.from_bytes(data[position + 8 : position + 12], "little")
            position += 12
        else:
            (length,), position = struct.unpack_from("<H", data, position + 6), position + 8
        if depth == 0 and tag == _PIXELS:
            size = int.from_bytes(data[position + 4 : position + 8], "little")
            found[tag] = data[position + 8 : position + 8 + size] if length == _UNDEFINED else b""
            break
        if length == _UNDEFINED:
            depth += 1
            continue
        if tag == _PATHS:
            continue  # with what is in its items
        if tag == _PATH:
            paths[data[position : position + length]] = None
        if depth == 0 and tag in _WANTED:
            found[tag] = data[position : position + length]
        position += length
    if paths:
        found[_PATH] = b"\\".join(paths)
    return found


def open_dicom(path: Path, open_openslide: Callable[[Path, str], Opened]) -> Opened:
    """Opens a DICOM slide.

    Args:
      path: a folder with the .dcm files of one slide, or one of the files.
      open_openslide: opens a file of a format by OpenSlide.

    Raises:
      InputError: no DICOM slide there, several, a damaged one, or one that needs wsidicom, which is
        not installed.
    """
    folder = path if path.is_dir() else path.parent
    for member in folder.iterdir():
        if member.exists() and not member.is_dir():
            check_regular(member)  # OpenSlide opens each to see whether it belongs to the slide
    notes = ()
    if path == folder:
        found = files_in(folder)
        if not any(found):
            raise InputError(f"{folder}: a folder without .dcm files; name a slide")
        if len(found.slides) > 1:
            names = ", ".join(files[0].name for files in found.slides)
            raise InputError(
                f"{folder}: {len(found.slides)} slides in one folder ({names}); name one of these "
                "files, or give each slide a folder"
            )
        files = found.slides[0] if found.slides else [*found.unreadable, *found.other]
        if found.slides and found.unreadable:
            left_out = ", ".join(file.name for file in found.unreadable)
            notes = (f"files that are no DICOM are left out: {left_out}",)
    else:
        files = files_of(path)
    for file in (*files, *_others_of(folder, files)):
        _check_frames(file)
    opened = _open(path, files, open_openslide)
    return dataclasses.replace(opened, notes=(*opened.notes, *notes))


def _others_of(folder: Path, files: list[Path]) -> list[Path]:
    """Files of the same series that end otherwise, or are hidden: OpenSlide takes them, too."""
    series = {_header(file).series for file in files} - {""}
    others = sorted(path for path in folder.iterdir() if path not in files)
    return [path for path in others if _header(path).series in series]


def _open(path: Path, files: list[Path], open_openslide: Callable[[Path, str], Opened]) -> Opened:
    reason = "another kind than it knows"
    try:
        # Any file leads OpenSlide to the others of its series.
        if openslide.OpenSlide.detect_format(str(files[0])) == "dicom":
            return open_openslide(files[0], "dicom")
    except openslide.OpenSlideError as error:
        reason = one_line(error)  # wsidicom takes more kinds
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
            f"{path}: not a whole DICOM slide ({one_line(error)}); copy it again"
        ) from error
    try:
        _check_optical_paths(path, len(optical_paths))
    except InputError:
        handle.close()
        raise

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        region = handle.read_region((x, y), levels[level].level, (width, height))
        return np.asarray(region.convert("RGB"))

    planes, pyramids = len(focal_planes), len(handle.pyramids)
    notes = []
    if planes > 1:
        notes.append(f"it has {planes} focal planes; only the middle one is used")
    if pyramids > 1:
        notes.append(f"it holds {pyramids} large images; only the first is used")
    return Opened(
        sizes=tuple((level.size.width, level.size.height) for level in levels),
        read=read,
        close=handle.close,
        vendor="dicom",
        mpp=(mpp.width, mpp.height),
        notes=tuple(notes),
    )
