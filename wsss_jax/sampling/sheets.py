"""Contact sheets of patches: those kept, and those dropped, a sheet for each reason."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.patch_files import read_image
from wsss_jax.report.canvas import Layout, Picture, Row, write_page
from wsss_jax.sampling.selection import ABSOLUTE, RELATIVE

_SHOWN = 60  # patches on a sheet
_SIDE_BY_SIDE = 10
_CELL = 128  # pixels, side of a patch on the sheet


class SheetPatch(NamedTuple):
    """A patch for a sheet: its file, its place in level-0 pixels, and its measures."""

    path: Path
    place: tuple[int, int]
    measures: dict[str, float]


def write_sheets(
    folder: Path, slide: str, kept: Sequence[SheetPatch], dropped: dict[str, list[SheetPatch]]
) -> None:
    """Writes `kept.png`, and `dropped_<reason>.png` for each reason; removes earlier ones.

    Under the 60 patches that are drawn first, a caption says the measure that decided, or the place
    of those kept.

    Args:
      folder: of the slide's results.
      slide: its name, for the titles.
      kept: in the order drawn.
      dropped: first reason -> patches, in the order drawn.
    """
    for path in folder.glob("dropped_*.png"):
        path.unlink()
    (folder / "kept.png").unlink(missing_ok=True)
    if kept:
        _write(folder / "kept.png", f"{slide}: kept", kept, [])
    for reason, patches in dropped.items():
        columns = [rule.column for rule in (*ABSOLUTE, *RELATIVE) if rule.reason == reason]
        name = f"dropped_{reason.replace(' ', '_')}.png"
        _write(folder / name, f"{slide}: dropped, {reason}", patches, columns)


def _write(path: Path, title: str, patches: Sequence[SheetPatch], columns: list[str]) -> None:
    rows = []
    for patch in patches[:_SHOWN]:
        values = [f"{column} {patch.measures[column]:.3g}" for column in columns]
        caption = ", ".join(values) or "{}, {}".format(*patch.place)
        rows.append(Row([Picture(read_image(patch.path, None), photograph=True)], caption))
    shown = f", the first {_SHOWN} of them" if len(patches) > _SHOWN else ""
    layout = Layout(f"{title}: {len(patches):,}{shown}", _CELL, _SIDE_BY_SIDE)
    write_page(path, rows, [""], [], layout)
