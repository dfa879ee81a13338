"""Which slides a job is about: files found by name, a folder of results for each, their mpp."""

import glob
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from wsss_jax.errors import InputError
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading import dicom
from wsss_jax.slides.reading.dicom import is_hidden
from wsss_jax.wording import format_count

ENDINGS = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu"),
    *(".dcm", ".czi", ".png", ".jpg", ".jpeg"),
)
RESERVED = (
    *("index.html", "areas.csv", "ratios.csv", "failed.txt", "networks.json"),
    *("config.json", "dataset.json", ".", ".."),
)
_KEY_FILES = (".vms", ".vmu")  # Hamamatsu's, which name the files with the pixels
_END = 1 << 20  # bytes of each end of a file that the checksum of a large slide covers,
_BLOCK, _BLOCKS = 1 << 16, 64  # with so many blocks of so many bytes, spread over the file
_ALL = 32 << 20  # bytes of a slide whose checksum covers them all
_NAME = 200  # most bytes of a name that is made up; file systems allow 255


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

    A folder stands for the files in it that end like slides and for the DICOM slides in it and in
    its folders. All .dcm files of a series are one slide: the folder if it has no other slides,
    else the first of them. Hidden files, and files in this program's folders of results, are passed
    over unless they are named in full; how many of the latter is said.

    Returns:
      each slide once, by whatever links and spellings of its path it is found; in the order of the
      text, sorted within a pattern. Names of one file that are left out are said.

    Raises:
      InputError: nothing there, by the name of the pattern.
    """
    found: dict[Path, None] = {}
    results_passed_over = 0
    texts = [slides] if Path(slides).exists() else filter(None, map(str.strip, slides.split(",")))
    for text in texts:
        whole = Path(text)
        if whole.name in ("", ".."):
            whole = whole.resolve()  # a folder's name is that of its results
        if whole.is_dir():
            inside = _in_folder(whole)
            if not inside:
                raise InputError(
                    f"config.slides: the folder {text} has no file that ends like a slide "
                    f"({' '.join(ENDINGS)}): name the slides"
                )
        elif whole.exists():
            inside = [whole]
        else:
            named = [
                path for path in map(Path, glob.glob(text, recursive=True)) if not is_hidden(path)
            ]
            if not named:
                raise InputError(f"config.slides: there is no {text}: correct --config.slides")
            inside = sorted(slide for path in named for slide in _dicom_slides(path) or [path])
        if inside != [whole]:
            slides_inside = _without_results(inside)
            results_passed_over += len(inside) - len(slides_inside)
            inside = slides_inside
        found.update(dict.fromkeys(inside))
    if results_passed_over:
        print(f"passed over: {format_count(results_passed_over, 'path')} in folders of results")
    if results_passed_over and not found:
        raise InputError(
            f"config.slides: {slides} names only files of results of this program: name the slides"
        )
    if not found:
        raise InputError("config.slides names no slide: set --config.slides='slides/*.svs'")
    return _without_parts(_without_twins(list(found)))


def _without_results(paths: list[Path]) -> list[Path]:
    """The paths without what this program has written: folders of results, and what is of all."""
    is_ours, is_run = lru_cache(results.is_result_folder), lru_cache(_is_run)
    return [
        path
        for path in paths
        if not any(map(is_ours, (path, *path.parents[:2])))  # the second one of parts
        and not is_run(path)
        and not (path.name in RESERVED and is_run(path.parent))
    ]


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "dataset.json"))


def _without_twins(paths: list[Path]) -> list[Path]:
    """The paths without those that lead to the file or folder of an earlier one."""
    kept: dict[str, Path] = {}
    twins = []
    for path in paths:
        first = kept.setdefault(os.path.realpath(path), path)
        if first is not path and path.absolute() != first.absolute():
            twins.append(f"{path} is {first}")
    if twins:
        more = f" and {len(twins) - 1} more" if len(twins) > 1 else ""
        print(f"named twice and taken once: {twins[0]}{more}")
    return list(kept.values())


def _in_folder(folder: Path) -> list[Path]:
    slides = other_slides(folder)
    for path in folder.iterdir():
        slides.extend(() if is_hidden(path) else _dicom_slides(path))
    return sorted([*slides, *_dicom_slides(folder, alone=not slides)])


def other_slides(folder: Path) -> list[Path]:
    """The files of a folder that end like slides, but for DICOM and for parts of other slides."""
    # A link that leads nowhere is no file, but it is to be reported, not passed over.
    slides = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS
        and path.suffix.lower() != ".dcm"
        and not path.is_dir()
        and not is_hidden(path)
    ]
    key_files = [path for path in slides if path.suffix.lower() in _KEY_FILES]
    parts = {part for path in key_files for part in _named_in(path)}
    return [path for path in slides if path not in parts]


def _dicom_slides(folder: Path, alone: bool | None = None) -> list[Path]:
    """The slides of a folder with DICOM: itself if that is one slide, else a file of each.

    Args:
      folder: any path; what is no folder, or has no DICOM, has no slides.
      alone: whether nothing else stands in it; None: to be seen, what does is added.
    """
    # Not of a folder that cannot be read, which says so itself when it is named.
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    found = dicom.files_in(folder)
    others = other_slides(folder) if alone is None and any(found) else []
    if any(found) and len(found.slides) < 2 and not others and alone is not False:
        return [folder]
    return [*others, *(files[0] for files in found.slides), *found.unreadable]


def _without_parts(paths: list[Path]) -> list[Path]:
    """The paths without .dcm files of a series that an earlier one is, or is of."""
    kept, known = [], set()
    for path in paths:
        first, series = path, ""
        if path.is_dir():
            first = next((files[0] for files in dicom.files_in(path).slides), path)
        if first.suffix.lower() == ".dcm":
            series = dicom.series_of(first)
        if not series or (first.parent, series) not in known:
            kept.append(path)
        known.add((first.parent, series))
    return kept


def files(paths: Sequence[Path], slide_mpp: float, table: dict[str, float]) -> list[SlideFile]:
    """The slides with their names and what the user says of their resolution.

    Args:
      paths: as `find` returns.
      slide_mpp: for all slides that the table has not; 0 leaves them to their metadata.
      table: by file name, with or without the ending, or by the name of the folder of results; see
        `reading.mpp_table`.

    Raises:
      InputError: a name in the table that several slides have, or several names of one slide.
    """
    by_name = {unicodedata.normalize("NFC", key): key for key in table}
    slides: list[SlideFile] = []
    users: dict[str, Path] = {}  # of each name in the table
    passed_over: list[tuple[Path, str, str]] = []  # names of a slide that another one is used for
    for path, name in zip(paths, _names(paths), strict=True):
        forms = (unicodedata.normalize("NFC", form) for form in (name, path.name, path.stem))
        used, *others = [by_name[form] for form in dict.fromkeys(forms) if form in by_name] or [""]
        # The name of its folder is no other slide's.
        if used != name and users.setdefault(used, path) != path and used:
            raise InputError(
                f"config.mpp_table: {used} could be {users[used]} and {path}; give a line for "
                f"each, by the names of their folders of results, such as {name}"
            )
        passed_over += [(path, used, key) for key in others if table[key] != table[used]]
        slides.append(SlideFile(path, name, table[used] if used else slide_mpp or None))
    for path, used, key in passed_over:
        if key not in users:
            raise InputError(
                f"config.mpp_table: {used} and {key} both are {path} and differ; keep one line"
            )
    return slides


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest of stem, file name, ... that no other slide could have, whatever the case.

    Bytes of a file name that are no text (a Latin-1 "ä" on Linux) become "_". Some file systems
    tell neither cases nor the two ways of writing "ä" in Unicode apart.
    """
    forms = [_forms(path) for path in paths]
    counts = Counter(RESERVED)
    for of_slide in forms:
        counts.update({_folded(name) for name in of_slide})
    return [
        next((name for name in of_slide if counts[_folded(name)] == 1), of_slide[-1])
        for of_slide in forms
    ]


def _forms(path: Path) -> list[str]:
    stem, name, parent = (
        re.sub("[\ud800-\udfff]", "_", text)
        for text in (path.stem, path.name, path.absolute().parent.name)
    )
    forms = [name if path.is_dir() else stem, name]
    if len((longer := f"{parent}_{name}").encode()) <= _NAME:
        forms.append(longer)
    checksum = f"_{zlib.crc32(os.fsencode(path.absolute())):08x}"
    short = name.encode()[: _NAME - len(checksum)].decode(errors="ignore")
    return [*forms, short + checksum]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def members(path: Path) -> list[Path]:
    """The files of a slide: its own, and those it has in its folder; hidden ones do not count.

    A slide in several files has them in its folder, in the folder with its stem (.mrxs), or beside
    it (.dcm of one series, those that .vms and .vmu name).
    """
    if path.suffix.lower() in _KEY_FILES:
        return [path, *_named_in(path)]
    if path.suffix.lower() == ".dcm" and path.is_file():
        return dicom.files_of(path)
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        *([] if path.is_dir() else [path]),
        *(member for member in inside if not is_hidden(member) and not member.is_dir()),
    ]


def _named_in(key_file: Path) -> list[Path]:
    """What a key file of Hamamatsu's names (ImageFile=x.jpg), as far as it exists."""
    if not key_file.is_file():
        return []
    lines = key_file.read_bytes()[:_END].decode("utf-8", "replace").splitlines()
    values = (line.partition("=")[2].strip() for line in lines)
    return [key_file.parent / name for name in values if _exists(key_file.parent / name)]


def _exists(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # no name of a file at all
        return False


def content(path: Path) -> dict[str, int | str]:
    """What tells a slide's content from another's: bytes, and a CRC-32.

    It covers all bytes of a slide up to `_ALL`; of a larger one the ends of each of its files, and
    blocks between them at even distances.
    """
    files = [(member, member.stat().st_size) for member in members(path) if member.is_file()]
    size, checksum = sum(length for _, length in files), 0
    for member, length in files:
        with member.open("rb") as file:
            if size <= _ALL:
                places = [(place, _END) for place in range(0, length, _END)]
            else:
                starts = [length * number // _BLOCKS for number in range(_BLOCKS)]
                blocks = [(start, _BLOCK) for start in starts]
                places = [(0, _END), *blocks, (max(0, length - _END), _END)]
            for place, count in places:
                file.seek(place)
                checksum = zlib.crc32(file.read(count), checksum)
    return {"bytes": size, "crc32": f"{checksum:08x}"}
