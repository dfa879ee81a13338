"""Folders of results: which are this program's, and what their summaries say."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.parts import SETTINGS_FILE

SUMMARY = "slide.json"  # written last: a folder with it is finished
PARTS = "parts"
LOCK = "lock"  # in the folder of parts
OF_ANOTHER = "has the map of another slide"  # what is said of a folder that a slide cannot have
# Of a summary, for a slide to count as finished: key -> its type.
_NEEDED = {
    "settings": dict,
    "files": list,
    "tiles": int,
    "tissue_pixels": int,
    "areas": list,
    "ratios": dict,
    "warnings": list,
    "name": str,
    "file": str,
}
_AREA = {"class": str, "pixels": int, "mm2": float, "share_of_slide": float}


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What `slide.json` says of a finished folder; None if it is not finished, or not ours."""
    path = folder / SUMMARY
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


@lru_cache(maxsize=1 << 14)
def _read(path: Path, *_: int) -> dict[str, Any] | None:
    """Kept as long as the file is the same: the tables of a cohort ask for it again and again."""
    try:
        summary = json.loads(path.read_bytes())
    except ValueError:
        return None
    return summary if _is_summary(summary) else None


def _is_summary(summary: Any) -> bool:
    return (
        _has(summary, _NEEDED)
        and _has(summary["settings"], {"map": dict, "output": dict})
        and all(isinstance(text, str) for text in [*summary["files"], *summary["warnings"]])
        and all(_has(row, _AREA) for row in summary["areas"])
        and all(_is_share(row.get("share_of_tissue")) for row in summary["areas"])
        and all(map(_is_share, summary["ratios"].values()))
    )


def _has(mapping: Any, types: Mapping[str, type]) -> bool:
    return isinstance(mapping, dict) and all(
        isinstance(mapping.get(key), (int, float) if kind is float else kind)
        for key, kind in types.items()
    )


def _is_share(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def is_ours(folder: Path) -> bool:
    """Whether a folder is that of a slide's results, finished or begun."""
    return (folder / PARTS / SETTINGS_FILE).is_file() or read_summary(folder) is not None


def check_ours(folder: Path) -> None:
    """Refuses a folder with files of others, which would be replaced or removed.

    Hidden files, a lock and a damaged summary do not matter.

    Raises:
      InputError: names one of the files.
    """
    if not folder.is_dir() or is_ours(folder):
        return
    for path in sorted(folder.iterdir()):
        is_held = path.name == PARTS and path.is_dir() and _visible(path) <= {LOCK}
        if not (path.name.startswith(".") or path.name == SUMMARY or is_held):
            raise InputError(
                f"{folder} has files that are not of its slide's map, such as {path.name}: move "
                "them, or name another --workdir"
            )


def _visible(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not name.startswith(".")}


def finished(workdir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the finished folders of a workdir with their summaries, by name."""
    for folder in sorted(workdir.iterdir()):
        if not folder.name.startswith(".") and (summary := read_summary(folder)) is not None:
            yield folder, summary
