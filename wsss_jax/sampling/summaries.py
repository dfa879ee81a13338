"""What is known of the patches of a slide, and where its files lie in the folder of all patches.

`slides/<name>/sample.json` is the record: what the patches were made with, their positions, their
measures once all are cut, and the judgment. The tables of all slides are made of these records.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from data.dataset import is_printable
from wsss_jax.config import CONFIG_FILE
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.sampling.tables import COLUMNS, PatchRow
from wsss_jax.slides.reading.catalog import SlideFile

SUMMARY = "sample.json"
KEPT, DROPPED = "patches", "dropped"  # folders of patches, with a folder for each slide
SLIDES = "slides"  # folder of the other files of each slide
CUT = "cut"  # folder among these, of patches that are not judged yet
_LONGEST_NAME = 180  # bytes of a slide's name, so that those of patches, with labels, fit in 255


class Folders(NamedTuple):
    """Where the files of a slide lie.

    Attributes:
      kept, dropped, cut: its patches; the last, until they are judged.
      results: `sample.json`, contact sheets, GeoJSON.
    """

    kept: Path
    dropped: Path
    cut: Path
    results: Path

    @classmethod
    def of(cls, out: Path, name: str) -> "Folders":
        """Returns the folders of the slide `name` in `config.out`."""
        results = out / SLIDES / name
        return cls(out / KEPT / name, out / DROPPED / name, results / CUT, results)

    def find_patches(self) -> dict[str, Path]:
        """Finds the patches that are there, by name without ending."""
        return {
            path.stem: path
            for folder in (self.cut, self.dropped, self.kept)
            for path in folder.glob("[!.]*.png")
        }


def is_sample_folder(folder: Path) -> bool:
    """Tells whether a folder has patches, or results of a slide, that were written by this job."""
    is_above = folder.name in (KEPT, DROPPED) and (folder.parent / CONFIG_FILE).is_file()
    return is_above or read_summary(folder) is not None


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Reads `sample.json`; None if there is none, or it is something else."""
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    is_summary = isinstance(summary, dict) and {"file", "settings", "positions"} <= summary.keys()
    return summary if is_summary else None


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes `sample.json`, atomically."""
    with atomic_path(folder / SUMMARY) as path:
        # Names of files that are no text are written as escapes.
        path.write_text(json.dumps(summary, allow_nan=False) + "\n", encoding="utf-8")


def is_finished(summary: dict[str, Any]) -> bool:
    """Whether the patches of a slide have been judged."""
    return "kept" in summary


def find_corner(summary: dict[str, Any], index: int) -> tuple[int, int]:
    """Finds the upper left corner of a patch in level-0 pixels."""
    x, y = summary["positions"][index]
    across, down = summary["scale"]
    return round(x * across), round(y * down)


def name_patches(summary: dict[str, Any], slide: str) -> list[str]:
    """Names the patches of a slide by their positions, without ending."""
    corners = (find_corner(summary, index) for index in range(len(summary["positions"])))
    return [name_patch(slide, left, top) for left, top in corners]


def name_patch(slide: str, left: int, top: int) -> str:
    """Names a patch by its slide and its upper left corner in level-0 pixels, without ending."""
    return f"{slide}_x{left:05d}_y{top:05d}"


def check_slide_name(file: SlideFile) -> None:
    """Refuses a slide whose name cannot begin those of patches.

    Raises:
      InputError: it is too long, has characters that do not print, or begins with a dot.
    """
    is_long = len(file.name.encode()) > _LONGEST_NAME
    if is_long or not is_printable(file.name) or file.name.startswith("."):
        raise InputError(
            f"{file.path}: its name cannot begin those of patches (over {_LONGEST_NAME} bytes, "
            "characters that do not print, or a dot at its beginning); rename it"
        )


def get_measures(summary: dict[str, Any], index: int) -> dict[str, float]:
    """Returns the measures of a patch of a finished slide; nan where one is unknown."""
    measures = summary["measures"]
    values = {column: measures[column][index] if column in measures else None for column in COLUMNS}
    return {column: math.nan if value is None else value for column, value in values.items()}


def make_rows(summary: dict[str, Any], slide: str, patient: str, split: str) -> list[PatchRow]:
    """Makes the rows of `patches.csv` of a finished slide, in the order drawn."""
    size, mpp = summary["settings"]["size"], summary["settings"]["mpp"]
    rows = []
    for index, name in enumerate(name_patches(summary, slide)):
        kept = summary["kept"][index]
        left, top = find_corner(summary, index)
        rows.append(
            PatchRow(
                patch=f"{KEPT if kept else DROPPED}/{slide}/{name}.png",
                slide=slide,
                patient=patient,
                split=split,
                left=left,
                top=top,
                size0=size * summary["scale"][0],
                mpp=mpp,
                kept=kept,
                reason=summary["reasons"][index],
                measures=get_measures(summary, index),
            )
        )
    return rows
