"""What is about all slides of a workdir: its index, its tables, and the list of failures.

All is made of the summaries of the finished folders, whichever jobs have made them, and of the
failures of this job and of earlier ones.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from data.dataset import Dataset
from wsss_jax.files import atomic_path, hold_lock
from wsss_jax.report import slide_pages
from wsss_jax.slides.outputs import areas, outputs, results, summaries

INDEX = "index.html"
FAILURES = "failed.txt"
_LOCK = ".cohort"  # held while these files are read and written
_WAIT = 60.0  # seconds for another job that writes them
# Folders of an absolute path, without spaces; those that have some are known by their names.
_FOLDERS = re.compile(r"(?<![\w.~/-])/(?:[^\s/:;,'\"()]+/)+")


def write(
    workdir: Path,
    dataset: Dataset,
    slide: str,
    error: str,
    slides: Collection[str],
    folders: Sequence[Path],
) -> None:
    """Writes `index.html`, `areas.csv`, `ratios.csv` and, if there is need, `failed.txt`.

    A slide that failed is listed with its error instead of an earlier map of it, and stays in
    `failed.txt` until a job has done it. One without a summary, which another process may be
    making, remains to be done.

    Args:
      workdir: of the slides' folders.
      dataset: of the networks, with the colors of pictures.
      slide: the name of the one that this job has tried just now.
      error: what is wrong with it, one line; "" if it is done.
      slides: names of all of this job.
      folders: whose names pages do not show.

    Raises:
      InputError: another process has been writing these files for a long time.
    """
    with hold_lock(workdir / _LOCK, wait=_WAIT):
        # Of this job's earlier ones the file knows if another job has done them meanwhile.
        failures = _failures(workdir, besides=slide) | ({_one_line(slide): error} if error else {})
        finished = {folder.name: summary for folder, summary in results.finished(workdir)}
        known = [*folders, workdir, *(Path(each["file"]).parent for each in finished.values())]
        shown = {
            name: each
            for name, each in finished.items()
            if results.OF_ANOTHER in failures.get(_one_line(name), results.OF_ANOTHER)
        }
        remaining = {name for name in slides if _one_line(name) not in failures} - shown.keys()
        entries = [
            *(
                slide_pages.IndexEntry(name, error=without_folders(error, known))
                for name, error in failures.items()
            ),
            *(summaries.index_entry(each, name, dataset) for name, each in shown.items()),
            *map(slide_pages.IndexEntry, sorted(remaining)),
        ]
        slide_pages.write_index(workdir / INDEX, entries)
        tables = {name: each["areas"] for name, each in shown.items()}
        ratios = {name: each["ratios"] for name, each in shown.items() if each["ratios"]}
        for name, write_table, rows in (
            (outputs.AREAS, areas.write_areas, tables),
            (outputs.RATIOS, areas.write_ratios, ratios),
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


def _failures(workdir: Path, besides: str) -> dict[str, str]:
    """What has been listed, by name on one line, without what was said of the slide `besides`."""
    path = workdir / FAILURES
    lines = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    kept = [line for line in lines.splitlines() if not line.startswith(f"{_one_line(besides)}: ")]
    pairs = (line.partition(": ") for line in kept)
    return {name: error for name, _, error in pairs if error}


def _one_line(name: str) -> str:
    return " ".join(name.split())


def without_folders(text: str, folders: Collection[Path]) -> str:
    """A message in which files go by their names alone, for pages that others may see.

    Args:
      text: the message.
      folders: that may have spaces in their names, or be relative.
    """
    names = {f"{name}/" for each in folders if each != Path() for name in (each, each.absolute())}
    names |= {f"{each.absolute()}/" for each in folders} - {"//"}
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.~/-]){re.escape(name)}", "", text)
    return _FOLDERS.sub("", text)
