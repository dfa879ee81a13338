"""The slides of a job: finding their files, naming their folders of results, their mpp."""

import glob
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data.folders import fold_name
from wsss_jax.errors import InputError
from wsss_jax.slides.reading import dicom
from wsss_jax.slides.reading.dicom import is_hidden
from wsss_jax.slides.reading.key_files import list_named_files
from wsss_jax.wording import format_count

ENDINGS = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu"),
    *(".dcm", ".czi", ".png", ".jpg", ".jpeg"),
)
# Files of a workdir, which no folder of results may be named as.
RESERVED = (
    *("index.html", "areas.csv", "ratios.csv", "failed.txt", "networks.json"),
    *("config.json", "dataset.json", ".", ".."),
)
_KEY_FILES = (".vms", ".vmu")  # Hamamatsu's, which name the files with the pixels
_END_BYTES = 1 << 20  # the checksum of a large slide covers both ends of its files
_BLOCK_BYTES, _BLOCKS = 1 << 16, 64  # and so many blocks between them
_WHOLE_BYTES = 32 << 20  # the checksum of a smaller slide covers all of it
_NAME_BYTES = 200  # of a name with a checksum, at most; file systems allow 255


class SlideFile(NamedTuple):
    """A slide to segment.

    Attributes:
      path: a file, or a folder with the .dcm files of one slide.
      name: of its folder of results; no two slides have the same.
      mpp: micrometers per level-0 pixel as given by the user; None uses the metadata.
    """

    path: Path
    name: str
    mpp: float | None


def find_slides(text: str, is_results: Callable[[Path], bool], field: str = "slides") -> list[Path]:
    """Finds the slides that a text names: paths and patterns (`*`, `?`, `**`), comma-separated.

    A folder stands for the files in it that end like slides, and for the DICOM slides in it and in
    its subfolders. All .dcm files of a series are one slide: the folder if it has no other slides,
    else the first file. Hidden files, and files in folders of results, are skipped unless they are
    named in full; the number of the latter is printed.

    Args:
      text: the value of the field.
      is_results: whether a path is a folder of results of this program.
      field: of the configuration, for messages.

    Returns:
      each slide once, by whatever links and spellings of its path it is found, in the order of the
      text, sorted within a pattern. Names of one file that are left out are printed.

    Raises:
      InputError: a path or pattern leads to no slide.
    """
    slides: dict[Path, None] = {}
    skipped = 0
    names = [text] if Path(text).exists() else filter(None, map(str.strip, text.split(",")))
    for name in names:
        candidates = _expand(name, field)
        if candidates != [_complete(name)]:
            count = len(candidates)
            candidates = _skip_results(candidates, is_results)
            skipped += count - len(candidates)
        slides.update(dict.fromkeys(candidates))
    if skipped:
        print(f"skipped: {format_count(skipped, 'path')} in folders of results")
        if not slides:
            raise InputError(
                f"config.{field}: {text} names only results of this program: name the slides"
            )
    if not slides:
        raise InputError(f"config.{field} names no slide: set --config.{field}='slides/*.svs'")
    return _drop_repeated_series(_drop_repeated_files(list(slides)))


def _complete(name: str) -> Path:
    """Returns the path of a name, resolved where it is `.` or `..`: its results need a name."""
    path = Path(name)
    return path.resolve() if path.name in ("", "..") else path


def _expand(name: str, field: str) -> list[Path]:
    """Returns the slides that one path or pattern names; a file named in full is taken as it is."""
    path = _complete(name)
    if path.is_dir():
        slides = _list_slides(path)
        if not slides:
            raise InputError(
                f"config.{field}: the folder {name} has no file that ends like a slide "
                f"({' '.join(ENDINGS)}): name the slides"
            )
        return slides
    if path.exists():
        return [path]
    paths = map(Path, glob.glob(name, recursive=True))
    matches = [match for match in paths if not is_hidden(match)]
    if not matches:
        raise InputError(f"config.{field}: there is no {name}: correct --config.{field}")
    return sorted(slide for match in matches for slide in _list_dicom(match) or [match])


def _skip_results(paths: list[Path], is_results: Callable[[Path], bool]) -> list[Path]:
    """Returns the paths that this program did not write: not results of slides or of a workdir."""
    is_results, is_workdir = lru_cache(is_results), lru_cache(_is_workdir)
    return [
        path
        for path in paths
        if not any(map(is_results, (path, *path.parents[:2])))  # two up: files in `parts`
        and not is_workdir(path)
        and not (path.name in RESERVED and is_workdir(path.parent))
    ]


def _is_workdir(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "dataset.json"))


def _drop_repeated_files(paths: list[Path]) -> list[Path]:
    """Drops paths that lead to the same file or folder as an earlier one."""
    first_paths: dict[str, Path] = {}
    repeated = []
    for path in paths:
        first = first_paths.setdefault(os.path.realpath(path), path)
        if first is not path and path.absolute() != first.absolute():
            repeated.append(f"{path} is {first}")
    if repeated:
        more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        print(f"named twice and taken once: {repeated[0]}{more}")
    return list(first_paths.values())


def _list_slides(folder: Path) -> list[Path]:
    slides = list_non_dicom(folder)
    for path in folder.iterdir():
        if not is_hidden(path):
            slides += _list_dicom(path)
    return sorted([*slides, *_list_dicom(folder, alone=not slides)])


def list_non_dicom(folder: Path) -> list[Path]:
    """Lists the files of a folder that end like slides, without DICOM and parts of other slides."""
    # A link that leads nowhere is not a file, but it is to be reported, not skipped.
    slides = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS
        and path.suffix.lower() != ".dcm"
        and not path.is_dir()
        and not is_hidden(path)
    ]
    key_files = [path for path in slides if path.suffix.lower() in _KEY_FILES]
    parts = {part for path in key_files for part in list_named_files(path)}
    return [path for path in slides if path not in parts]


def _list_dicom(folder: Path, alone: bool | None = None) -> list[Path]:
    """Lists the slides of a folder with DICOM: itself if it is one slide, else a file of each.

    Args:
      folder: any path; a path that is not a folder, or has no DICOM, has no slides.
      alone: whether the folder has no other slides; None looks for them, and adds them.
    """
    # A folder that cannot be read gives its error when it is named itself.
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    files = dicom.group_files(folder)
    others = list_non_dicom(folder) if alone is None and any(files) else []
    if any(files) and len(files.slides) < 2 and not others and alone is not False:
        return [folder]
    return [*others, *(members[0] for members in files.slides), *files.unreadable]


def _drop_repeated_series(paths: list[Path]) -> list[Path]:
    """Drops .dcm files whose series is already among the earlier paths."""
    slides: dict[tuple[Path, str], Path] = {}
    for path in paths:
        first = path
        if path.is_dir():
            first = next((files[0] for files in dicom.group_files(path).slides), path)
        series = dicom.read_series(first) if first.suffix.lower() == ".dcm" else ""
        slides.setdefault((first.parent, series) if series else (path, ""), path)
    return list(slides.values())


def normalize_name(name: str) -> str:
    """Returns one form of both ways of writing "ä" in Unicode: files from a Mac have the other."""
    return unicodedata.normalize("NFC", name)


def name_slides(
    paths: Sequence[Path], slide_mpp: float, table: dict[str, float]
) -> list[SlideFile]:
    """Gives each slide the name of its folder of results, and its mpp if the user set it.

    Args:
      paths: from `find_slides`.
      slide_mpp: for all slides that the table does not have; 0 uses their metadata.
      table: mpp by file name, with or without the ending, or by the name of the folder of results;
        see `mpp.read_mpp_table`.

    Raises:
      InputError: a name in the table that several slides have, or several names of one slide.
    """
    keys = {normalize_name(key): key for key in table}
    slides: list[SlideFile] = []
    owners: dict[str, Path] = {}  # the slide that each key of the table is used for
    unused: list[tuple[Path, str, str]] = []  # keys that fit a slide for which another is used
    for path, name in zip(paths, _choose_names(paths), strict=True):
        forms = map(normalize_name, (name, path.name, path.stem))
        used, *others = [keys[form] for form in dict.fromkeys(forms) if form in keys] or [""]
        # The name of its folder of results belongs to no other slide.
        if used != name and owners.setdefault(used, path) != path and used:
            raise InputError(
                f"config.mpp_table: {used} could be {owners[used]} or {path}; give a line for "
                f"each, by the names of their folders of results, such as {name}"
            )
        unused += [(path, used, key) for key in others if table[key] != table[used]]
        slides.append(SlideFile(path, name, table[used] if used else slide_mpp or None))
    for path, used, key in unused:
        if key not in owners:
            raise InputError(
                f"config.mpp_table: {used} and {key} are both for {path} and differ; keep one line"
            )
    return slides


def _choose_names(paths: Sequence[Path]) -> list[str]:
    """Chooses for each slide the shortest of stem, file name, ... that no other slide could have.

    Bytes of a file name that are not text (a Latin-1 "ä" on Linux) become "_". Some file systems
    distinguish neither upper and lower case nor the two ways of writing "ä" in Unicode.
    """
    candidates = [_list_names(path) for path in paths]
    counts = Counter(RESERVED)
    for names in candidates:
        counts.update(set(map(fold_name, names)))
    return [
        next((name for name in names if counts[fold_name(name)] == 1), names[-1])
        for names in candidates
    ]


def _list_names(path: Path) -> list[str]:
    """Lists the names that a slide's folder of results could have, the preferred one first."""
    stem, name, parent = (
        re.sub("[\ud800-\udfff]", "_", text)
        for text in (path.stem, path.name, path.absolute().parent.name)
    )
    names = [name if path.is_dir() else stem, name]
    if len((longer := f"{parent}_{name}").encode()) <= _NAME_BYTES:
        names.append(longer)
    checksum = f"_{zlib.crc32(os.fsencode(path.absolute())):08x}"
    short = name.encode()[: _NAME_BYTES - len(checksum)].decode(errors="ignore")
    return [*names, short + checksum]


def list_members(path: Path) -> list[Path]:
    """Lists the files of a slide without hidden ones.

    A slide of several files has them in its folder, in the folder with its stem (.mrxs), or beside
    it (.dcm of one series, files that .vms and .vmu name).
    """
    if path.suffix.lower() in _KEY_FILES:
        return [path, *list_named_files(path)]
    if path.suffix.lower() == ".dcm" and path.is_file():
        return dicom.find_slide_files(path)
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        *([] if path.is_dir() else [path]),
        *(member for member in inside if not is_hidden(member) and not member.is_dir()),
    ]


def fingerprint(path: Path) -> dict[str, int | str]:
    """Identifies the content of a slide by its number of bytes and a CRC-32.

    The CRC covers all bytes of a slide up to `_WHOLE_BYTES`; of a larger slide the ends of each of
    its files, and blocks between them at equal distances.
    """
    sizes = {file: file.stat().st_size for file in list_members(path) if file.is_file()}
    total, checksum = sum(sizes.values()), 0
    for member, size in sizes.items():
        with member.open("rb") as file:
            if total <= _WHOLE_BYTES:
                ranges = [(start, _END_BYTES) for start in range(0, size, _END_BYTES)]
            else:
                starts = [size * number // _BLOCKS for number in range(_BLOCKS)]
                blocks = [(start, _BLOCK_BYTES) for start in starts]
                ranges = [(0, _END_BYTES), *blocks, (max(0, size - _END_BYTES), _END_BYTES)]
            for start, count in ranges:
                file.seek(start)
                checksum = zlib.crc32(file.read(count), checksum)
    return {"bytes": total, "crc32": f"{checksum:08x}"}
