"""The files made from a finished map: maps, polygons, tables, pictures, report and summary.

A file is written again only if settings that it depends on have changed: other colors of the
pictures leave maps, polygons and areas as they are.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import ml_collections
import numpy as np

from data.dataset import Dataset
from data.pictures import open_picture
from wsss_jax.files import atomic_path
from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.report.colors import make_legend
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.mapping import provenance
from wsss_jax.slides.mapping.networks import Networks
from wsss_jax.slides.mapping.parts import Parts
from wsss_jax.slides.outputs import areas, findings, pyramid, report_data, results
from wsss_jax.slides.outputs.geojson import PolygonRule, write_geojson
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import Slide
from wsss_jax.slides.reading.view import View

OVERVIEW = 2048  # pixels, longer side of the overview that pictures are made from
LABEL_MAP = "label_map.ome.tif"
COLOR_MAP = "label_map_rgb.tif"
PROBABILITIES = "probabilities.ome.tif"
POLYGONS = "tissue.geojson"
AREAS = "areas.csv"
RATIOS = "ratios.csv"
FILES = {
    LABEL_MAP: "label map, a value for each class, pyramidal OME-TIFF (QuPath, tifffile, bioio)",
    COLOR_MAP: "label map in colors, pyramidal RGB TIFF (OpenSlide, tiatoolbox, large_image)",
    PROBABILITIES: "mean probability of each class, 0 to 255, pyramidal OME-TIFF",
    POLYGONS: "regions as annotations for QuPath, in pixels of the slide",
    AREAS: "areas, for spreadsheets",
    RATIOS: "ratios of areas, for spreadsheets",
    slide_pictures.OVERLAY: "classes over the tissue",
    slide_pictures.THUMBNAIL: "the slide",
    results.SUMMARY: "everything in this report, for programs",
}
_PICTURES = (slide_pictures.OVERLAY, slide_pictures.THUMBNAIL, slide_pictures.SMALL)
# File -> the settings of "output" that it depends on, besides all of "map".
_DEPENDS: dict[str, tuple[str, ...]] = {
    LABEL_MAP: ("classes", "palette"),
    COLOR_MAP: ("picture_palette",),
    PROBABILITIES: ("classes", "palette", "probabilities"),
    POLYGONS: ("classes", "palette", "geojson"),
    AREAS: ("classes", "roles", "tables"),
    RATIOS: ("classes", "roles", "tables"),
    **dict.fromkeys(_PICTURES, ("classes", "picture_palette", "picture")),
}
_TABLES = 2  # version of the tables: count up when columns change
_LARGE_FILE = 100  # megabytes of polygons from which a warning says so
_AREA_TOLERANCE = 0.05  # share of a class's area by which its polygons may differ from the map


class Sources(NamedTuple):
    """What the files of a slide are made from."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    networks: Networks
    file: SlideFile
    slide: Slide
    view: View

    @property
    def frame(self) -> MapFrame:
        """Size and place of the map."""
        return self.view.frame

    @property
    def picture_legend(self) -> Legend:
        """The classes with the colors of pictures."""
        return make_legend(self.dataset, self.config.palette)


def collect_settings(config: ml_collections.ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """Collects the settings that the files depend on, besides those of the map."""
    in_pictures = make_legend(dataset, config.palette)
    return {
        "classes": list(dataset.classes),
        "palette": [list(color) for color in dataset.palette],
        "roles": dict(dataset.roles),
        "probabilities": config.probabilities,
        "geojson": config.geojson.to_dict(),
        "picture": config.picture,
        "picture_palette": [list(color) for color in in_pictures.palette],
        "tables": _TABLES,
        **findings.collect_settings(config),
    }


def list_files(config: ml_collections.ConfigDict, ratios: Collection[str]) -> set[str]:
    """Lists the files of a finished slide, without report and summary.

    Args:
      config: of the job "segment".
      ratios: the ratios that the data set has the classes for, by key.
    """
    left_out = set()
    if not config.probabilities:
        left_out.add(PROBABILITIES)
    if not ratios:
        left_out.add(RATIOS)
    return _DEPENDS.keys() - left_out


def is_whole(folder: Path, summary: Mapping[str, Any], name: str) -> bool:
    """Tells whether a file exists and has as many bytes as the summary says, if it says so."""
    path = folder / name
    size = path.stat().st_size if path.is_file() else 0
    sizes = summary.get("sizes")
    return size > 0 and (not isinstance(sizes, dict) or sizes.get(name, size) == size)


def find_outdated(
    folder: Path, names: set[str], before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> set[str]:
    """Finds which of the files must be written: missing or damaged ones, and those of old settings.

    Args:
      folder: of the slide.
      names: of the files, from `list_files`.
      before: its summary, if there is one of the same map.
      now: the current settings.
    """
    if before is None:
        return set(names)
    old, new = before["settings"]["output"], now["output"]
    return {
        name
        for name in names
        if not is_whole(folder, before, name)
        or any(old.get(key) != new[key] for key in _DEPENDS[name])
    }


def write_maps(
    sources: Sources,
    folder: Path,
    parts: Parts,
    names: Collection[str],
    tissue_pixels: int,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Writes those of the files `names` that are maps, polygons and tables.

    Args:
      sources: what they are made from.
      folder: where to write.
      parts: the whole map.
      names: of the files, from `find_outdated`.
      tissue_pixels: pixels of the tissue mask.
      before: the summary of an earlier run, for the numbers of files that stay.

    Returns:
      what the summary says of the map: "areas", "ratios" and "pixels_in_polygons".
    """
    config, dataset, file = sources.config, sources.dataset, sources.file
    frame, legend = sources.frame, make_legend(dataset, "dataset")
    if LABEL_MAP in names:
        pyramid.write_label_map(folder / LABEL_MAP, parts.read, frame, legend)
    if COLOR_MAP in names:
        pyramid.write_color_map(folder / COLOR_MAP, parts.read, frame, sources.picture_legend)
    if PROBABILITIES in names:
        path = folder / PROBABILITIES
        pyramid.write_probability_maps(path, parts.read_probability, frame, legend)
    numbers = ("areas", "ratios", "pixels_in_polygons")
    known: dict[str, Any] = {key: (before or {}).get(key) for key in numbers}
    if POLYGONS in names or known["pixels_in_polygons"] is None:
        content = catalog.fingerprint(file.path)
        slide_id = f"{file.name}/{content['bytes']}/{content['crc32']}"
        rule = PolygonRule(config.geojson.min_area, config.geojson.simplify)
        covered = write_geojson(folder / POLYGONS, parts.read, frame, legend, slide_id, rule)
        known["pixels_in_polygons"] = covered.tolist()
    if {AREAS, RATIOS} & set(names):
        counts = areas.count_pixels(parts.read, frame.height, dataset.num_classes)
        known["areas"] = areas.tabulate_areas(counts, legend.names, frame, tissue_pixels)
        known["ratios"] = areas.compute_ratios(counts, legend.names, dataset.roles)
        areas.write_areas(folder / AREAS, {file.name: known["areas"]})
        if known["ratios"]:
            areas.write_ratios(folder / RATIOS, {file.name: known["ratios"]})
    return known


def make_pictures(
    sources: Sources,
    folder: Path,
    parts: Parts,
    names: Collection[str],
    overview: Callable[[], tuple[np.ndarray, float]],
) -> slide_pictures.SlidePictures:
    """Makes what the pictures show, and writes them if they are among `names`.

    Args:
      sources, folder, parts, names: as for `write_maps`.
      overview: what `View.read_overview` returns at `OVERVIEW`, called only if needed.
    """
    config, view = sources.config, sources.view
    is_new = bool(set(_PICTURES) & set(names))
    if is_new:
        image, _ = overview()
        height, width = image.shape[:2]
        shrink = max(1.0, max(width, height) / config.picture)
        size = max(1, round(width / shrink)), max(1, round(height / shrink))
        thumbnail = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    else:  # reading the slide again may take long
        with open_picture(folder / slide_pictures.THUMBNAIL, ("PNG",)) as picture:
            thumbnail = np.asarray(picture.convert("RGB"))
    height, width = thumbnail.shape[:2]
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n)
        for n, size in ((height, view.height), (width, view.width))
    )
    longest = min(OVERVIEW, config.picture, max(view.width, view.height))
    pictures = slide_pictures.SlidePictures(
        thumbnail,
        np.stack([parts.read(y, y + 1)[0, columns] for y in rows.tolist()]),
        view.mpp * max(view.width, view.height) / longest,
        sources.picture_legend,
    )
    if is_new:
        slide_pictures.write_pictures(folder, pictures)
    return pictures


def summarize_slide(
    sources: Sources, folder: Path, known: Mapping[str, Any], tissue_note: str
) -> dict[str, Any]:
    """Makes the part of `slide.json` that describes the slide, its networks and its map.

    Args:
      sources: as for `write_maps`.
      folder: of the slide.
      known: what `write_maps` returned, and the `findings`.
      tissue_note: one sentence on the tissue mask, or "".
    """
    config, dataset, networks, file, slide, view = sources
    pixels = [row["pixels"] for row in known["areas"][: dataset.num_classes]]
    shares = {
        name: covered / count if count else None
        for name, covered, count in zip(dataset.classes, known["pixels_in_polygons"], pixels)
    }
    names = list_files(config, known["ratios"])
    return {
        "name": file.name,
        "file": str(file.path.absolute()),
        "format": slide.vendor,
        "levels": [[level.width, level.height] for level in slide.levels],
        "mpp": slide.mpp,
        "mpp_xy": slide.mpp_xy,
        "metadata_mpp": slide.metadata_mpp,
        "objective_power": slide.objective_power,
        "bounds": list(slide.bounds),
        "size": [view.width, view.height],
        **known,
        "polygon_shares": shares,
        "networks": {phase: origin._asdict() for phase, origin in networks.origins.items()},
        "runs": {"phase1": config.phase1, "phase2": config.phase2},
        "warnings": [
            *slide.warnings,
            *filter(None, [view.warning, tissue_note]),
            *provenance.list_warnings(networks.origins, config.mpp),
            *_check_polygons(folder, shares),
        ],
        "files": [name for name in FILES if name in names],
    }


def _check_polygons(folder: Path, shares: Mapping[str, float | None]) -> list[str]:
    """Returns warnings on a file of polygons that is large, or far from the label map."""
    warnings = []
    megabytes = (folder / POLYGONS).stat().st_size // 1_000_000
    if megabytes > _LARGE_FILE:
        warnings.append(
            f"{POLYGONS} has {megabytes} MB, which viewers open slowly or not at all: set "
            "--config.geojson.min_area=2000 and --config.geojson.simplify=2"
        )
    deviations = [
        f"{share:.0%} of the area of {name}"
        for name, share in shares.items()
        if share is not None and abs(share - 1) > _AREA_TOLERANCE
    ]
    if deviations:
        warnings.append(
            f"the polygons of {POLYGONS} hold {', '.join(deviations)}: measure on the label map "
            f"and take areas from {AREAS}, or set --config.geojson.min_area=0"
        )
    return warnings


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    pictures: slide_pictures.SlidePictures,
    place_pictures: Sequence[slide_pictures.SlidePictures],
) -> None:
    """Writes the report and, last, the summary, which marks the folder as finished.

    Args:
      folder: of the slide.
      summary: what `summarize_slide` returned, with the settings, tiles, times and versions of the
        run.
      pictures: what `make_pictures` returned.
      place_pictures: of the places in the summary, from `findings.make_pictures`.
    """
    report = slide_pages.SlideReport(
        summary["name"],
        pictures,
        report_data.list_areas(summary, pictures.legend),
        report_data.list_ratios(summary),
        report_data.describe_map(summary),
        summary["warnings"],
        {name: FILES[name] for name in [*summary["files"], results.SUMMARY]},
        report_data.list_places(summary, place_pictures),
        report_data.describe_certainty(summary),
    )
    slide_pages.write_report(folder / slide_pages.REPORT, report)
    written = [*summary["files"], slide_pictures.SMALL, slide_pages.REPORT]
    summary = {**summary, "sizes": {name: (folder / name).stat().st_size for name in written}}
    with atomic_path(folder / results.SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
