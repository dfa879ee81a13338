"""`cohort.csv`: a line for each slide of a cohort, with its areas and why it needs a look."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss_jax import spreadsheets
from wsss_jax.report.cohort_page import Reason
from wsss_jax.slides.outputs import areas

FINISHED, FAILED, REMAINING = "finished", "failed", "remaining"


class Line(NamedTuple):
    """A slide.

    Attributes:
      name: of the slide.
      summary: None if it has no finished map.
      reasons: why it needs a look.
      error: one line; "" if none.
      is_at_work: whether a job is making its map.
    """

    name: str
    summary: Mapping[str, Any] | None = None
    reasons: Sequence[Reason] = ()
    error: str = ""
    is_at_work: bool = False


def write_cohort_table(path: Path | str, lines: Sequence[Line], classes: Sequence[str]) -> None:
    """Writes the table for spreadsheets, atomically. An undefined value is an empty cell.

    Args:
      path: of the CSV file.
      lines: the slides in the order to list them.
      classes: names of the classes.
    """
    summaries = [line.summary for line in lines if line.summary is not None]
    keys = [key for key in areas.RATIOS if any(key in each["ratios"] for each in summaries)]
    headings = [
        *("state", "file", "um per pixel", "tissue (mm2)"),
        *(f"{spreadsheets.escape_text(name)} (mm2)" for name in classes),
        *(f"{spreadsheets.escape_text(name)}: share of tissue" for name in classes),
        *(areas.RATIOS[key].heading for key in keys),
        *("confidence threshold", "share of area under it"),
        *("warnings", "needs a look", "error"),
    ]
    rows = [[line.name, *_make_cells(line, classes, keys)] for line in lines]
    areas.write_csv(path, headings, rows)


def _make_cells(line: Line, classes: Sequence[str], keys: Sequence[str]) -> list[str]:
    numbers = _make_numbers(line.summary, classes, keys)
    state = FAILED if line.error else REMAINING if line.summary is None else FINISHED
    reasons = "; ".join(reason.text for reason in line.reasons)
    texts = map(spreadsheets.escape_text, (reasons or (FAILED if line.error else ""), line.error))
    return [state, *numbers, *texts]


def _make_numbers(
    summary: Mapping[str, Any] | None, classes: Sequence[str], keys: Sequence[str]
) -> list[str]:
    """Returns the cells from the file to the number of warnings."""
    if summary is None:
        return [""] * (3 + 2 * len(classes) + len(keys) + 3)
    by_class = {row["class"]: row for row in summary["areas"]}
    confidence = summary.get("confidence") or {"threshold": None, "share": None}
    mpp = summary.get("mpp")
    numbers = [
        areas.sum_tissue(summary["areas"]),
        *(by_class[name]["mm2"] if name in by_class else None for name in classes),
        *(by_class[name]["share_of_tissue"] if name in by_class else None for name in classes),
        *(summary["ratios"].get(key) for key in keys),
    ]
    return [
        spreadsheets.escape_text(Path(summary["file"]).name),
        "" if mpp is None else f"{mpp:g}",
        *map(areas.format_number, numbers),
        "" if confidence["threshold"] is None else f"{confidence['threshold']:g}",
        areas.format_number(confidence["share"]),
        str(len(summary["warnings"])),
    ]
