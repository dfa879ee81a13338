"""Turns drawn shapes (labelme, QuPath) into masks, and masks into shapes to correct."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_collections
from tqdm import tqdm

from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.polygons.drawings import ENDINGS, find_files, is_drawing
from wsss_jax.polygons.from_masks import ShapeMaker, is_source
from wsss_jax.polygons.outputs import Outputs, Write, write_failures
from wsss_jax.polygons.to_masks import MaskMaker
from wsss_jax.progress import show_progress
from wsss_jax.wording import format_count

_LABELS = rules.sequence(rules.TEXT)
FIELDS = {
    "to": rules.one_of("masks", "labelme", "geojson"),
    "files": rules.NAME,
    "images": rules.TEXT,
    "write_images": rules.BOOLEAN,
    "dataset": rules.TEXT,
    "classes": rules.sequence(rules.NAME),
    "labels": rules.sequence(rules.sequence(rules.TEXT, 2)),
    "ignored": _LABELS,
    "background": rules.TEXT,
    "overlap": rules.one_of("drawn", "smaller", "classes"),
    "order": _LABELS,
    "region": rules.TEXT,
    "mpp": rules.number(0, 20),
    "slide_mpp": rules.number(0, 20),
    "mpp_table": rules.TEXT,
    "min_area": rules.number(0, rules.LARGEST_AREA),
    "simplify": rules.number(0, 1000),
}
FAILURES = "failed.txt"
_SHOWN = 5  # names of files that failed, in the last message

# Converts a source; returns how many shapes were left out, by kind.
Convert = Callable[[Path, Write], Mapping[str, int]]


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses fields that do not go together; see `config.validate`."""
    if config.order and config.overlap != "classes":
        raise InputError(
            f"{prefix}order needs --{prefix}overlap=classes: set it, or leave order out"
        )
    if config.to == "labelme" and not config.images:
        raise InputError(f"{prefix}images is '': name the folder of the images of the masks")


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Converts the files that the configuration names.

    Writes into the workdir `masks`, with `images` beside them and `dataset.json`; or `labelme` or
    `geojson`. Files that a person has changed since are not overwritten. A file that cannot be
    converted does not keep the others from being done.

    Raises:
      InputError: at once if the settings are wrong; at the end if files failed.
    """
    _check_workdir(config, workdir)
    if config.to == "masks":
        sources = find_files(config.files, is_drawing, f"files ending in {', '.join(ENDINGS)}")
        masks = MaskMaker(config)
        runs.save(config, masks.dataset, workdir)
        _convert_all(sources, masks.convert, workdir)
    else:
        sources = find_files(config.files, is_source, "PNG files or maps of slides")
        shapes = ShapeMaker(config, workdir)
        config_lib.save(config, workdir)
        _convert_all(sources, shapes.convert, workdir)


def _check_workdir(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuses a workdir of another job, or of the other direction: its files could be the source.

    Raises:
      InputError: names both.
    """
    runs.check(config, workdir, started=False)
    if (workdir / config_lib.CONFIG_FILE).is_file():
        before = config_lib.load(workdir, "workdir")
        if before.to != config.to:
            raise InputError(
                f"{workdir} holds what was made with to={before.to!r}, this is {config.to!r}: "
                "name another --workdir"
            )


def _convert_all(sources: list[Path], convert: Convert, workdir: Path) -> None:
    """Converts each source by itself; ends with an error that counts those that failed."""
    outputs = Outputs(workdir)
    failures: dict[Path, str] = {}
    left_out: Counter[str] = Counter()
    try:
        for source in show_progress(iterable=sources, unit="file"):
            try:
                with outputs.replace(source) as write:
                    kinds = Counter(convert(source, write))
            except InputError as error:
                # Errors of slides and images name these only.
                text = str(error) if str(source) in str(error) else f"{source}: {error}"
                tqdm.write(f"FAILED: {text}")
                failures[source] = text
                continue
            left_out += kinds
            if kinds:
                tqdm.write(f"{source}: left out, without area: {_list_kinds(kinds)}")
    finally:
        outputs.save()
    done = len(sources) - len(failures)
    print(
        f"{workdir}: {format_count(done, 'file')} converted"
        + (f"; left out, without area: {_list_kinds(left_out)}" if left_out else "")
    )
    write_failures(workdir / FAILURES, failures)
    if failures:
        names = "; ".join([source.name for source in failures][:_SHOWN])
        if len(failures) > _SHOWN:
            names += "; ..."
        first = next(iter(failures.values()))
        raise InputError(
            f"{len(failures)} of {format_count(len(sources), 'file')} failed, listed in "
            f"{workdir / FAILURES}: {first if len(failures) == 1 else names}"
        )


def _list_kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
