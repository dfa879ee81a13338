"""The files about all slides of a workdir: their index, their tables and the list of failures.

All are made from the summaries of the finished folders, whichever job made them, and from the
failures of this job and of earlier ones.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from wsss_jax.files import atomic_path, hold_lock
from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pages import IndexEntry, write_index
from wsss_jax.slides.outputs import areas, report_data, result_files, results

INDEX = "index.html"
FAILURES = "failed.txt"
_LOCK = ".cohort"  # held while these files are read and written
_WAIT = 60.0  # seconds to wait for another job that writes them
# An absolute path without its last part, where no folder has a space in its name.
_FOLDERS = re.compile(r"(?<![\w.~/-])/(?:[^\s/:;,'\"()]+/)+")


def write_cohort(
    workdir: Path,
    legend: Legend,
    slide: str,
    error: str,
    slides: Collection[str],
    folders: Sequence[Path],
) -> None:
    """Writes `index.html`, `areas.csv`, `ratios.csv` and, if a slide failed, `failed.txt`.

    A slide that failed is listed with its error instead of its earlier map, and stays in
    `failed.txt` until a job finishes it. A slide without a summary, perhaps because another process
    works on it, is listed as remaining.

    Args:
      workdir: of the slides' folders.
      legend: with the colors of pictures.
      slide: the name of the slide that this job has just tried.
      error: what is wrong with it, one line; "" if it is finished.
      slides: names of all slides of this job.
      folders: whose names pages do not show.

    Raises:
      InputError: another process has been writing these files for a long time.
    """
    with hold_lock(workdir / _LOCK, wait=_WAIT):
        # Read again each time: another job may have finished slides that failed in this one.
        failures = _read_failures(workdir, left_out=slide)
        if error:
            failures[_to_one_line(slide)] = error
        finished = {folder.name: summary for folder, summary in results.list_finished(workdir)}
        known = [*folders, workdir, *(Path(each["file"]).parent for each in finished.values())]
        shown = {
            name: summary
            for name, summary in finished.items()
            if results.OTHER_SLIDE in failures.get(_to_one_line(name), results.OTHER_SLIDE)
        }
        remaining = {name for name in slides if _to_one_line(name) not in failures} - shown.keys()
        entries = [
            *(
                IndexEntry(name, error=remove_folders(error, known))
                for name, error in failures.items()
            ),
            *(
                report_data.make_index_entry(summary, name, legend)
                for name, summary in shown.items()
            ),
            *map(IndexEntry, sorted(remaining)),
        ]
        write_index(workdir / INDEX, entries)
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


def _read_failures(workdir: Path, left_out: str) -> dict[str, str]:
    """Reads the listed errors: name on one line -> error, except the slide `left_out`."""
    path = workdir / FAILURES
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    start = f"{_to_one_line(left_out)}: "
    pairs = (line.partition(": ") for line in text.splitlines() if not line.startswith(start))
    return {name: error for name, _, error in pairs if error}


def _to_one_line(name: str) -> str:
    return " ".join(name.split())


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
