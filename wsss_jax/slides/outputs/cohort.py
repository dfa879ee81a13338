"""The files about all slides of a workdir: their index, their tables and the list of failures.

All are made from the summaries of the finished folders, whichever job made them, and from the
failures of this job and of earlier ones.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss_jax.files import atomic_path, hold_lock
from wsss_jax.report.cohort_page import Index, write_index
from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pages import format_share
from wsss_jax.slides.outputs import (
    areas,
    attention,
    cohort_table,
    report_data,
    result_files,
    results,
)

INDEX = "index.html"
TABLE = "cohort.csv"
FAILURES = "failed.txt"
_LOCK = ".cohort"  # held while these files are read and written
_WAIT = 60.0  # seconds to wait for another job that writes them
# An absolute path without its last part, where no folder has a space in its name.
_FOLDERS = re.compile(r"(?<![\w.~/-])/(?:[^\s/:;,'\"()]+/)+")


class Cohort(NamedTuple):
    """What a job knows of its cohort.

    Attributes:
      legend: with the colors of pictures.
      slides: names of all slides of the job.
      folders: whose names pages and tables do not show.
      rules: when a slide needs a look.
    """

    legend: Legend
    slides: Collection[str]
    folders: Sequence[Path]
    rules: attention.Rules


def write_cohort(workdir: Path, cohort: Cohort, slide: str = "", error: str = "") -> None:
    """Writes `index.html`, `cohort.csv`, `areas.csv`, `ratios.csv` and, if needed, `failed.txt`.

    A slide that failed is listed with its error instead of its earlier map, and stays in
    `failed.txt` until a job finishes it. A slide without a summary, perhaps because another process
    works on it, is listed as remaining.

    Args:
      workdir: of the slides' folders.
      cohort: what the job knows of it.
      slide: the name of the slide that this job has just tried; "" before the first one.
      error: what is wrong with it, one line; "" if it is finished.

    Raises:
      InputError: another process has been writing these files for a long time.
    """
    with hold_lock(workdir / _LOCK, wait=_WAIT):
        # Read again each time: another job may have finished slides that failed in this one.
        failures = _read_failures(workdir, left_out=slide)
        if error:
            failures[_to_one_line(slide)] = error
        finished = {folder.name: summary for folder, summary in results.list_finished(workdir)}
        shown = {
            name: summary
            for name, summary in finished.items()
            if results.OTHER_SLIDE in failures.get(_to_one_line(name), results.OTHER_SLIDE)
        }
        _write_pages(workdir, cohort, failures, shown, finished)
        tables = {name: summary["areas"] for name, summary in shown.items()}
        ratios = {name: summary["ratios"] for name, summary in shown.items() if summary["ratios"]}
        for name, write_table, rows in (
            (result_files.AREAS, areas.write_areas, tables),
            (result_files.RATIOS, areas.write_ratios, ratios),
        ):
            if rows:
                write_table(workdir / name, rows)
            else:
                (workdir / name).unlink(missing_ok=True)
        if failures:
            with atomic_path(workdir / FAILURES) as path:
                lines = [f"{name}: {error}\n" for name, error in failures.items()]
                path.write_text("".join(lines), encoding="utf-8")
        else:
            (workdir / FAILURES).unlink(missing_ok=True)


def _write_pages(
    workdir: Path,
    cohort: Cohort,
    failures: Mapping[str, str],
    shown: Mapping[str, Mapping[str, Any]],
    finished: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes the index, and `cohort.csv`, which has its slides in the same order.

    Args:
      workdir, cohort: as for `write_cohort`.
      failures: name on one line -> error.
      shown: summaries of the slides that are listed as finished, by name.
      finished: those of all finished folders, whose slides' folders are not shown either.
    """
    sources = (Path(summary["file"]).parent for summary in finished.values())
    known = [*cohort.folders, workdir, *sources]
    classes = cohort.legend.names
    reasons, common = attention.list_reasons(shown, classes, cohort.rules)
    remaining = {name for name in cohort.slides if _to_one_line(name) not in failures}
    errors = {name: remove_folders(error, known) for name, error in failures.items()}
    following = next((name for name in cohort.slides if name in remaining - shown.keys()), "")
    lines = [
        *(cohort_table.Line(name, error=error) for name, error in errors.items()),
        *(
            cohort_table.Line(
                name,
                summary,
                [each._replace(text=remove_folders(each.text, known)) for each in reasons[name]],
            )
            for name, summary in shown.items()
        ),
        *(
            cohort_table.Line(name, is_at_work=_is_at_work(workdir, name, following))
            for name in sorted(remaining - shown.keys())
        ),
    ]
    cohort_table.write_cohort_table(workdir / TABLE, lines, classes)
    write_index(
        workdir / INDEX,
        Index(
            [report_data.make_index_entry(line, cohort.legend) for line in lines],
            [remove_folders(text, known) for text in common],
            _describe_rules(cohort.rules, len(shown)),
            _describe_tables(shown),
        ),
    )


def _is_at_work(workdir: Path, name: str, following: str) -> bool:
    """Whether a slide's map is being made: it is the next one of this job, or has been begun."""
    return name == following or (workdir / name / results.PARTS).is_dir()


def _describe_rules(rules: attention.Rules, slides: int) -> list[str]:
    """Says when a slide needs a look."""
    compared = (
        f"an outlier is over {rules.outlier_z:g} robust standard deviations from the median of the "
        "finished slides (Iglewicz and Hoaglin 1993)"
        if slides >= rules.min_slides
        else f"outliers are looked for from {rules.min_slides} finished slides on"
    )
    return [
        f"Little tissue is less than {rules.min_tissue:g} mm², low confidence more than "
        f"{format_share(rules.max_uncertain)} of the area under the threshold; {compared}."
    ]


def _describe_tables(shown: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Lists the tables that there are, with what they hold."""
    tables = {TABLE: "a line for each slide"}
    if shown:
        tables[result_files.AREAS] = "areas of all slides"
    if any(summary["ratios"] for summary in shown.values()):
        tables[result_files.RATIOS] = "ratios of all slides"
    return tables


def _read_failures(workdir: Path, left_out: str) -> dict[str, str]:
    """Reads the listed errors: name on one line -> error, except the slide `left_out`."""
    path = workdir / FAILURES
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    start = f"{_to_one_line(left_out)}: "
    pairs = (line.partition(": ") for line in text.splitlines() if not line.startswith(start))
    return {name: error for name, _, error in pairs if error}


def _to_one_line(name: str) -> str:
    """Writes a name as in the list of failures; bytes that are no text as pages do."""
    return " ".join(name.split()).encode("utf-8", "backslashreplace").decode()


def remove_folders(text: str, folders: Collection[Path]) -> str:
    """Shortens the paths in a message to file names, for pages that others may see.

    Args:
      text: the message.
      folders: that may have spaces in their names, or be relative.
    """
    names = {f"{path}/" for each in folders if each != Path() for path in (each, each.absolute())}
    names |= {f"{each.absolute()}/" for each in folders} - {"//"}
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.~/-]){re.escape(name)}", "", text)
    return _FOLDERS.sub("", text)
