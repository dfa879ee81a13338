"""Counts the annotations by which a person has corrected the maps of slides."""

from collections.abc import Mapping
from pathlib import Path

import ml_collections
from tqdm import tqdm

from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.polygons.corrected_maps import CorrectionRule, describe_dataset, recount
from wsss_jax.polygons.drawings import find_files, get_stem, is_drawing
from wsss_jax.polygons.outputs import write_failures
from wsss_jax.slides.outputs import areas, result_files, results
from wsss_jax.slides.reading.catalog import normalize_name
from wsss_jax.wording import format_count

FIELDS = {
    "annotations": rules.NAME,
    "map": rules.NAME,
    "labels": rules.sequence(rules.sequence(rules.TEXT, 2)),
    "ignored": rules.sequence(rules.TEXT),
    "overlap": rules.one_of("smaller", "drawn"),
    "outside": rules.one_of("excluded", "map"),
}
FAILURES = "failed.txt"


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes new maps of corrected annotations, each in a folder as of the job "segment".

    `areas.csv` and `ratios.csv` in the workdir have the figures of all its slides. A file that
    cannot be counted does not keep the others from being counted.

    Raises:
      InputError: at once if there are no annotations or no maps; at the end if files failed.
    """
    runs.check(config, workdir, started=False)
    files = find_files(config.annotations, is_drawing, "files of GeoJSON", "annotations")
    maps = _list_maps(Path(config.map))
    folder, summary = next(iter(maps.items()))
    runs.save(config, describe_dataset(summary, folder / results.SUMMARY), workdir)
    rule = CorrectionRule(config.labels, config.ignored, config.overlap, config.outside)
    failures: dict[Path, str] = {}
    taken: dict[Path, Path] = {}  # folder of a map -> its annotations
    for number, path in enumerate(files, start=1):
        try:
            original = _find_map(path, maps, is_only=len(files) == 1)
            if (other := taken.setdefault(original, path)) != path:
                raise InputError(f"{path}: {other} has the annotations of the same slide; keep one")
            done = recount(path, original, workdir / original.name, rule)
            tqdm.write(f"{number} of {len(files)}: {done}")
        except InputError as error:
            failures[path] = str(error) if str(path) in str(error) else f"{path}: {error}"
            tqdm.write(f"{number} of {len(files)}: {path.name} FAILED: {error}")
        _write_tables(workdir)
    write_failures(workdir / FAILURES, failures)
    if failures:
        raise InputError(
            f"{len(failures)} of {format_count(len(files), 'file')} failed, listed in "
            f"{workdir / FAILURES}: {next(iter(failures.values()))}"
        )


def _list_maps(folder: Path) -> Mapping[Path, Mapping]:
    """Lists the finished maps of a workdir, or the one of a slide's folder."""
    if (summary := results.read_summary(folder)) is not None:
        return {folder: summary}
    found = dict(results.list_finished(folder)) if folder.is_dir() else {}
    if not found:
        raise InputError(
            f"config.map: {folder} has no finished map of a slide: name the folder of a slide's "
            "results, or the workdir of the job 'segment'"
        )
    return found


def _find_map(path: Path, maps: Mapping[Path, Mapping], *, is_only: bool) -> Path:
    """Finds the map that annotations are of: the only one, or by the name of the file."""
    if len(maps) == 1 and is_only:
        return next(iter(maps))
    stem = normalize_name(get_stem(path))
    found = []
    for folder, summary in maps.items():
        slide = Path(summary["file"])
        names = {folder.name, slide.name, slide.stem, slide.stem.removesuffix(".ome")}
        if stem in map(normalize_name, names):
            found.append(folder)
    if len(found) == 1:
        return found[0]
    several = f"several maps are called so ({', '.join(map(str, found))})"
    raise InputError(
        f"{path}: {several if found else 'no map is called so'}; name the file as its slide, such "
        f"as {next(iter(maps)).name}.geojson, or name one map by --config.map"
    )


def _write_tables(workdir: Path) -> None:
    """Writes the areas and ratios of all finished slides."""
    finished = {folder.name: summary for folder, summary in results.list_finished(workdir)}
    if finished:
        tables = {name: summary["areas"] for name, summary in finished.items()}
        areas.write_areas(workdir / result_files.AREAS, tables)
    if ratios := {name: each["ratios"] for name, each in finished.items() if each["ratios"]}:
        areas.write_ratios(workdir / result_files.RATIOS, ratios)
