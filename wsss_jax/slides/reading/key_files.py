"""Files that a slide in several files names, which OpenSlide opens without a look at their kind."""

import re
from pathlib import Path

from wsss_jax.files import check_regular

_HAMAMATSU = ("[Virtual Microscope Specimen]", "[Uncompressed Virtual Microscope Specimen]")
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}  # of GLib's key files
_MOST = 1 << 20  # bytes of a key file


def check_named(path: Path) -> None:
    """Refuses a slide of which OpenSlide would open a pipe or a device as a part.

    Hamamatsu's key files (whatever they are called), the Slidedat.ini of MIRAX and the photo beside
    a slide of Trestle are looked at; DICOM is not.

    Raises:
      InputError: see `check_regular`.
    """
    photo = path.with_suffix(".Full")
    if _is_there(photo):
        check_regular(photo)
    folder, names = path.parent, _values(path, _HAMAMATSU)
    if path.suffix.lower() == ".mrxs":
        folder = path.with_suffix("")
        key_file = folder / "Slidedat.ini"
        if _is_there(key_file):
            check_regular(key_file)
            names = _values(key_file, ("[",))
    for name in names:
        part = folder / name.lstrip("/")
        if _is_there(part):
            check_regular(part)


def _values(key_file: Path, groups: tuple[str, ...]) -> list[str]:
    """The values of a key file that has one of the groups; none of another file."""
    with key_file.open("rb") as file:
        text = file.read(_MOST).decode("utf-8", "replace")
    if not any(group in text for group in groups):
        return []
    values = (line.partition("=")[2].strip() for line in text.splitlines())
    return [
        re.sub(r"\\([sntr\\])", lambda match: _ESCAPES[match[1]], value)
        for value in values
        if value
    ]


def _is_there(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # no name of a file at all
        return False
