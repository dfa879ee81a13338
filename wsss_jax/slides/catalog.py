"""Which slides a job is about: files found by name, a folder of results for each, their mpp."""

import glob
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_jax.errors import InputError

ENDINGS = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu"),
    *(".dcm", ".czi", ".png", ".jpg", ".jpeg"),
)
RESERVED = (
    *("index.html", "areas.csv", "ratios.csv", "failed.txt", "networks.json"),
    *("config.json", "dataset.json", ".", ".."),
)
_END = 1 << 20  # bytes of each end of a file that its checksum covers


class SlideFile(NamedTuple):
    """A slide to work on.

    Attributes:
      path: a file, or a folder with the .dcm files of one slide.
      name: of its folder of results; no two slides have the same.
      mpp: micrometers per level-0 pixel as the user says; None takes the metadata's.
    """

    path: Path
    name: str
    mpp: float | None


def find(slides: str) -> list[Path]:
    """The slides that a text names: paths and patterns (`*`, `?`, `**`), separated by commas.

    A folder stands for the files in it that end like slides, and for folders in it with .dcm files;
    if it has .dcm files itself, it is one slide.

    Returns:
      each path once, in the order of the text, sorted within a pattern.

    Raises:
      InputError: nothing there, by the name of the pattern.
    """
    found: dict[Path, None] = {}
    texts = [slides] if Path(slides).exists() else filter(None, map(str.strip, slides.split(",")))
    for text in texts:
        whole = Path(text)
        if whole.name in ("", ".."):
            whole = whole.resolve()  # a folder's name is that of its results
        if whole.is_dir() and not _is_dicom(whole):
            inside = [path for path in sorted(whole.iterdir()) if _looks_like_slide(path)]
            if not inside:
                raise InputError(
                    f"config.slides: the folder {text} has no file that ends like a slide "
                    f"({' '.join(ENDINGS)}): name the slides"
                )
        elif whole.exists():
            inside = [whole]
        else:
            inside = sorted(map(Path, glob.glob(text, recursive=True)))
            if not inside:
                raise InputError(f"config.slides: there is no {text}: correct --config.slides")
        found.update(dict.fromkeys(inside))
    if not found:
        raise InputError("config.slides names no slide: set --config.slides='slides/*.svs'")
    return list(found)


def _is_dicom(path: Path) -> bool:
    # Not of a folder that cannot be read, which says so itself when it is named.
    readable = path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    return readable and any(member.suffix.lower() == ".dcm" for member in path.iterdir())


def _looks_like_slide(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    # A link that leads nowhere is no file, but it is to be reported, not passed over.
    return _is_dicom(path) or (not path.is_dir() and path.suffix.lower() in ENDINGS)


def files(paths: Sequence[Path], slide_mpp: float, table: dict[str, float]) -> list[SlideFile]:
    """The slides with their names and what the user says of their resolution.

    Args:
      paths: as `find` returns.
      slide_mpp: for all slides that the table has not; 0 leaves them to their metadata.
      table: by file name, with or without the ending; see `reading.mpp_table`.
    """
    return [
        SlideFile(path, name, table.get(path.name, table.get(path.stem, slide_mpp)) or None)
        for path, name in zip(paths, _names(paths), strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest of stem, file name, ... that no other slide could have, whatever the case.

    Bytes of a file name that are no text (a Latin-1 "ä" on Linux) become "_".
    """
    forms = [
        (
            path.name if path.is_dir() else path.stem,
            path.name,
            f"{path.absolute().parent.name}_{path.name}",
            f"{path.name}_{zlib.crc32(os.fsencode(path.absolute())):08x}",
        )
        for path in paths
    ]
    forms = [[re.sub("[\ud800-\udfff]", "_", name) for name in of_slide] for of_slide in forms]
    counts = Counter(RESERVED)
    for of_slide in forms:
        counts.update({name.casefold() for name in of_slide})
    return [
        next((name for name in of_slide if counts[name.casefold()] == 1), of_slide[-1])
        for of_slide in forms
    ]


def content(path: Path) -> dict[str, int | str]:
    """What tells a slide's content from another's: bytes, and CRC-32 of the ends of its files.

    A slide in several files has them in its folder, or in the folder with its stem (.mrxs).
    """
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    members = sorted(folder.iterdir()) if folder.is_dir() else []
    size, checksum = 0, 0
    for member in [path, *members]:
        if member.is_file():
            length = member.stat().st_size
            with member.open("rb") as file:
                checksum = zlib.crc32(file.read(_END), checksum)
                file.seek(max(0, length - _END))
                checksum = zlib.crc32(file.read(_END), checksum)
            size += length
    return {"bytes": size, "crc32": f"{checksum:08x}"}
