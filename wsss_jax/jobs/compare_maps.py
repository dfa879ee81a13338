"""Compares the maps that two runs made of the same slides."""

import json
from pathlib import Path

import ml_collections
from tqdm import tqdm

from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.progress import show_progress
from wsss_jax.report import slide_pages
from wsss_jax.slides import comparison_files
from wsss_jax.slides.comparison_files import Overview
from wsss_jax.slides.map_agreement import Comparison
from wsss_jax.slides.map_comparison import compare_slide, match_slides
from wsss_jax.wording import format_count

FIELDS = {
    "maps": rules.sequence(rules.NAME, 2),
    "palette": rules.PALETTE,
}


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Compares the slides that both workdirs have.

    Writes for each slide the folder `workdir/<name>` with a report and a picture of the
    differences, and tables of all slides (see `comparison_files`). A slide that cannot be compared
    does not keep the others from it.

    Raises:
      InputError: at once if a workdir has no maps or they have no slide in common; at the end if
        slides could not be compared.
    """
    first, second = map(Path, config.maps)
    runs.check(config, workdir, started=False)
    matches = match_slides(first, second)
    differing = "another slide has this name in the second workdir: its file has other content"
    failures = dict.fromkeys(matches.differing, differing)
    if not matches.pairs and not failures:
        raise InputError(
            f"config.maps: {first} and {second} have no slide in common "
            f"({_list_some(matches.first_only)}; {_list_some(matches.second_only)}): name workdirs "
            "with maps of the same slides"
        )
    config_lib.save(config, workdir)
    _remove_earlier(workdir)
    compared: list[Comparison] = []
    for pair in show_progress(iterable=matches.pairs, unit="slide"):
        name = pair.first.name
        try:
            compared.append(compare_slide(pair, config.palette, workdir / name))
        except InputError as error:
            failures[name] = " ".join(str(error).split())
            tqdm.write(f"{name} FAILED: {error}")
    titles = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    overview = Overview(titles, compared, matches.first_only, matches.second_only, failures)
    comparison_files.write_overview(workdir, overview)
    for names, which in ((matches.first_only, first), (matches.second_only, second)):
        if names:
            print(f"only in {which}: {_list_some(names)}")
    print(f"{workdir / comparison_files.INDEX}: {format_count(len(compared), 'slide')} compared")
    if failures:
        raise InputError(
            f"{format_count(len(failures), 'slide')} not compared, listed in "
            f"{workdir / comparison_files.INDEX}: {next(iter(failures))}: "
            f"{next(iter(failures.values()))}"
        )


def _remove_earlier(workdir: Path) -> None:
    """Removes the folders of an earlier start, of which some slides may be gone now."""
    path = workdir / comparison_files.SUMMARY
    if not path.is_file():
        return
    try:
        names = list(json.loads(path.read_bytes())["slides"])
    except (ValueError, TypeError, KeyError):
        names = []  # damaged: what is left of it stays
    path.unlink()
    for folder in (workdir / name for name in names if Path(name).name == name):
        for each in (slide_pages.REPORT, comparison_files.DIFFERENCE):
            (folder / each).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _list_some(names: list[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])]) or "none"
