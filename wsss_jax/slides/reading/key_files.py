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
    photo = path.with_suffix(".Full")
    if is_file_there(photo):
        check_regular(photo)
    folder, names = path.parent, _read_values(path, _HAMAMATSU)
    if path.suffix.lower() == ".mrxs":
        folder = path.with_suffix("")
        key_file = folder / "Slidedat.ini"
        if is_file_there(key_file):
            check_regular(key_file)
            names = _read_values(key_file, ("[",))
    for name in names:
        part = folder / name.lstrip("/")
        if is_file_there(part):
            check_regular(part)


def _read_values(key_file: Path, groups: tuple[str, ...]) -> list[str]:
    """Reads the values of a key file that has one of the groups; of another file none."""
    with key_file.open("rb") as file:
        text = file.read(_MAX_BYTES).decode("utf-8", "replace")
    if not any(group in text for group in groups):
        return []
    values = (line.partition("=")[2].strip() for line in text.splitlines())
    return [
        re.sub(r"\\([sntr\\])", lambda match: _ESCAPES[match[1]], value)
        for value in values
        if value
    ]


def list_named_files(key_file: Path) -> list[Path]:
    """Lists the existing files that a key file of Hamamatsu names (ImageFile=x.jpg)."""
    if not key_file.is_file():
        return []
    lines = key_file.read_bytes()[:_MAX_BYTES].decode("utf-8", "replace").splitlines()
    values = (line.partition("=")[2].strip() for line in lines)
    return [key_file.parent / name for name in values if is_file_there(key_file.parent / name)]


def is_file_there(path: Path) -> bool:
    """Whether a path leads to a file of any kind; False where it cannot be a file name at all."""
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False
