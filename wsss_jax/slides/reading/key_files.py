"""Files that a key file names, which OpenSlide opens without a check of their kind."""

import re
from pathlib import Path

from wsss_jax.files import check_regular

_HAMAMATSU = ("[Virtual Microscope Specimen]", "[Uncompressed Virtual Microscope Specimen]")
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}  # of GLib's key files
_MAX_BYTES = 1 << 20  # of a key file


def check_parts(path: Path) -> None:
    """Refuses a slide with a part that is a pipe or a device, which OpenSlide would open.

    Checks Hamamatsu's key files (under any name), the Slidedat.ini of MIRAX and the photo beside a
    slide of Trestle, but not DICOM.

    Raises:
      InputError: see `check_regular`.
    """
    _check_part(path.with_suffix(".Full"))
    folder, names = path.parent, _read_values(path, _HAMAMATSU)
    if path.suffix.lower() == ".mrxs":
        folder = path.with_suffix("")
        if _check_part(key_file := folder / "Slidedat.ini"):
            names = _read_values(key_file, ("[",))
    for name in names:
        _check_part(folder / name.lstrip("/"))


def _check_part(path: Path) -> bool:
    """Refuses a pipe or a device; returns whether there is a file."""
    is_there = is_file_there(path)
    if is_there:
        check_regular(path)
    return is_there


def _read_values(key_file: Path, groups: tuple[str, ...]) -> list[str]:
    """Reads the values of a key file that has one of the groups; of another file none."""
    lines = _read_lines(key_file)
    if not any(group in line for group in groups for line in lines):
        return []
    values = filter(None, map(_get_value, lines))
    return [re.sub(r"\\([sntr\\])", lambda match: _ESCAPES[match[1]], value) for value in values]


def _read_lines(key_file: Path) -> list[str]:
    with key_file.open("rb") as file:
        return file.read(_MAX_BYTES).decode("utf-8", "replace").splitlines()


def _get_value(line: str) -> str:
    return line.partition("=")[2].strip()


def list_named_files(key_file: Path) -> list[Path]:
    """Lists the existing files that a key file of Hamamatsu names (ImageFile=x.jpg)."""
    if not key_file.is_file():
        return []
    paths = (key_file.parent / _get_value(line) for line in _read_lines(key_file))
    return [path for path in paths if is_file_there(path)]


def is_file_there(path: Path) -> bool:
    """Whether a path leads to a file of any kind; False where it cannot be a file name at all."""
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False
