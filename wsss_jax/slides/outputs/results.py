"""Folders with the results of a slide: how to recognize them, and their summaries."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.parts import SETTINGS_FILE

SUMMARY = "slide.json"  # written last: it marks a folder as finished
PARTS = "parts"
LOCK = "lock"  # in the folder of parts
OTHER_SLIDE = "has the map of another slide"  # in errors; lists of failures are searched for it
# What a summary must have for the slide to count as finished: key -> type.
_REQUIRED = {
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
# What it may have, of later versions: "places" is a list of these, ...
_PLACE = {"kind": str, "text": str, "box": list, "value": float, "center": list}
_CONFIDENCE = {"threshold": float, "classes": dict}  # ... and "confidence" one of these or None.
_AREA = {"class": str, "pixels": int, "mm2": float, "share_of_slide": float}


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Reads `slide.json`; None if there is none, or it is not the summary of a slide."""
    path = folder / SUMMARY
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


@lru_cache(maxsize=1 << 14)
def _read(path: Path, *_: int) -> dict[str, Any] | None:
    """Reads a summary once per version of the file: the tables of a cohort need it many times."""
    try:
        summary = json.loads(path.read_bytes())
    except ValueError:
        return None
    return summary if _is_summary(summary) else None


def _is_summary(summary: Any) -> bool:
    return (
        _has_fields(summary, _REQUIRED)
        and _has_fields(summary["settings"], {"map": dict, "output": dict})
        and all(isinstance(text, str) for text in [*summary["files"], *summary["warnings"]])
        and all(_has_fields(row, _AREA) for row in summary["areas"])
        and all(_is_share(row.get("share_of_tissue")) for row in summary["areas"])
        and all(map(_is_share, summary["ratios"].values()))
        and _has_findings(summary)
    )


def _has_findings(summary: Mapping[str, Any]) -> bool:
    """Whether what later versions have found is well formed, if there is any."""
    places, confidence = summary.get("places", []), summary.get("confidence")
    return (
        isinstance(places, list)
        and all(
            _has_fields(place, _PLACE)
            and [*map(type, place["box"])] == [int] * 4
            and [*map(type, place["center"])] == [int] * 2
            for place in places
        )
        and (
            confidence is None
            or (
                _has_fields(confidence, _CONFIDENCE)
                and all(map(_is_share, [confidence.get("share"), *confidence["classes"].values()]))
            )
        )
    )


def _has_fields(mapping: Any, types: Mapping[str, type]) -> bool:
    return isinstance(mapping, dict) and all(
        isinstance(mapping.get(key), (int, float) if kind is float else kind)
        for key, kind in types.items()
    )


def _is_share(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def is_result_folder(folder: Path) -> bool:
    """Tells whether a folder has results of a slide, finished or not."""
    return (folder / PARTS / SETTINGS_FILE).is_file() or read_summary(folder) is not None


def check_result_folder(folder: Path) -> None:
    """Refuses a folder with other files, which results could replace.

    Hidden files, a lock and a damaged summary are allowed.

    Raises:
      InputError: names one of the files.
    """
    if not folder.is_dir() or is_result_folder(folder):
        return
    for path in sorted(folder.iterdir()):
        is_lock = path.name == PARTS and path.is_dir() and _list_visible(path) <= {LOCK}
        if not (path.name.startswith(".") or path.name == SUMMARY or is_lock):
            raise InputError(
                f"{folder} has files that are not results of a slide, such as {path.name}: move "
                "them, or give another --workdir"
            )


def _list_visible(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not name.startswith(".")}


def list_finished(workdir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the finished folders of a workdir with their summaries, by name."""
    for folder in sorted(workdir.iterdir()):
        if not folder.name.startswith(".") and (summary := read_summary(folder)) is not None:
            yield folder, summary
