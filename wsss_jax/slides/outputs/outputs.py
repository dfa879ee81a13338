"""What is made of a finished map: files that depend on their own settings, a report, a summary.

A file is written again only if something that it depends on has changed: other colors of the
pictures leave maps, polygons and areas as they are.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import ml_collections
import numpy as np

from data.dataset import Dataset
from data.pictures import open_picture
from wsss_jax.files import atomic_path
from wsss_jax.report import colors, slide_pages, slide_pictures
from wsss_jax.slides.mapping import provenance
from wsss_jax.slides.mapping.networks import Networks
from wsss_jax.slides.mapping.parts import Parts
from wsss_jax.slides.outputs import areas, polygons, pyramid, results, summaries
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import Slide
from wsss_jax.slides.reading.view import View

OVERVIEW = 2048  # pixels, longer side of the overview that pictures are made of
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
    results.SUMMARY: "everything this report states, for programs",
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
_TABLES = 2  # their form: another number if columns are other ones
_LARGE_FILE = 100  # megabytes of polygons
_FAR_OFF = 0.05  # share of a class's area by which its polygons may be off without a warning


class Sources(NamedTuple):
    """What files are made of: the slide, how it is seen, and who looked at it."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    networks: Networks
    file: SlideFile
    slide: Slide
    view: View


def settings(config: ml_collections.ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """The settings of what is made of the map."""
    in_pictures = colors.for_pictures(dataset, config.palette)
    return {
        "classes": list(dataset.classes),
        "palette": [list(color) for color in dataset.palette],
        "roles": dict(dataset.roles),
        "probabilities": config.probabilities,
        "geojson": config.geojson.to_dict(),
        "picture": config.picture,
        "picture_palette": [list(color) for color in in_pictures.palette],
        "tables": _TABLES,
    }


def wanted(config: ml_collections.ConfigDict, ratios: Collection[str]) -> set[str]:
    """The files that a finished slide has, without report and summary."""
    left_out = set()
    if not config.probabilities:
        left_out.add(PROBABILITIES)
    if not ratios:
        left_out.add(RATIOS)
    return _DEPENDS.keys() - left_out


def is_whole(folder: Path, summary: Mapping[str, Any], name: str) -> bool:
    """Whether a file is there, and has as many bytes as the summary says, if it says so."""
    path = folder / name
    size = path.stat().st_size if path.is_file() else 0
    sizes = summary.get("sizes")
    return size > 0 and (not isinstance(sizes, dict) or sizes.get(name, size) == size)


def outdated(
    folder: Path, names: set[str], before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> set[str]:
    """Which of the files `names` are to be written: missing or cut ones, those of other settings.

    Args:
      folder: of the slide.
      names: of `wanted`.
      before: its summary, if it has one of the same map.
      now: the settings of today.
    """
    if before is None:
        return set(names)
    was, is_now = before["settings"]["output"], now["output"]
    return {
        name
        for name in names
        if not is_whole(folder, before, name)
        or any(was.get(key) != is_now[key] for key in _DEPENDS[name])
    }


def write_maps(
    sources: Sources,
    folder: Path,
    parts: Parts,
    names: Collection[str],
    tissue_pixels: int,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Writes those of the files `names` that are no pictures; returns what is known of the map.

    Args:
      sources: what they are made of.
      folder: where to.
      parts: the whole map.
      names: of `outdated`.
      tissue_pixels: pixels of the tissue mask.
      before: the summary of an earlier start, for the figures of files that stay.
    """
    config, dataset, _, file, slide, view = sources
    look = {"palette": dataset.palette, "names": dataset.classes}
    size = view.width, view.height
    if LABEL_MAP in names:
        pyramid.write_label_map(folder / LABEL_MAP, parts.read, *size, mpp=view.mpp, **look)
    if COLOR_MAP in names:
        palette = colors.for_pictures(dataset, config.palette).palette
        pyramid.write_color_map(
            folder / COLOR_MAP, parts.read, *size, mpp=view.mpp, palette=palette
        )
    if PROBABILITIES in names:
        pyramid.write_probability_maps(
            folder / PROBABILITIES, parts.read_probability, *size, mpp=view.mpp, **look
        )
    held = (before or {}).get("pixels_in_polygons")
    if POLYGONS in names or held is None:
        content = catalog.fingerprint(file.path)
        held = polygons.write_geojson(
            folder / POLYGONS,
            parts.read,
            *size,
            mpp=view.mpp,
            scale=view.scale,
            slide_size=(slide.width, slide.height),
            offset=slide.bounds[:2],
            slide_id=f"{file.name}/{content['bytes']}/{content['crc32']}",
            min_area=config.geojson.min_area,
            simplify=config.geojson.simplify,
            **look,
        ).tolist()
    known = {key: (before or {}).get(key) for key in ("areas", "ratios")}
    if {AREAS, RATIOS} & set(names):
        counts = areas.count(parts.read, view.height, dataset.num_classes)
        pixels = view.width * view.height
        table = areas.rows(counts, dataset.classes, view.mpp, tissue_pixels, pixels)
        ratios = areas.ratios(counts, dataset.classes, dataset.roles)
        areas.write_areas(folder / AREAS, {file.name: table})
        if ratios:
            areas.write_ratios(folder / RATIOS, {file.name: ratios})
        known = {"areas": table, "ratios": ratios}
    return {**known, "pixels_in_polygons": held}


def make_pictures(
    sources: Sources,
    folder: Path,
    parts: Parts,
    names: Collection[str],
    overview: Callable[[], tuple[np.ndarray, float]],
) -> slide_pictures.SlidePictures:
    """What the pictures show; writes them if they are among `names`.

    Args:
      sources, folder, parts, names: as of `write_maps`.
      overview: what `View.read_overview` returns at `OVERVIEW`, asked for only if it is needed.
    """
    config, view = sources.config, sources.view
    dataset = colors.for_pictures(sources.dataset, config.palette)
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
        dataset.classes,
        dataset.palette,
    )
    if is_new:
        slide_pictures.write_pictures(folder, pictures)
    return pictures


def describe(
    sources: Sources, folder: Path, made: Mapping[str, Any], tissue_note: str
) -> dict[str, Any]:
    """What `slide.json` says of the slide, its networks and its map.

    Args:
      sources: as of `write_maps`.
      folder: of the slide.
      made: what `write_maps` returned.
      tissue_note: one sentence on the tissue mask, or "".
    """
    config, dataset, networks, file, slide, view = sources
    pixels = [row["pixels"] for row in made["areas"][: dataset.num_classes]]
    shares = {
        name: held / count if count else None
        for name, held, count in zip(dataset.classes, made["pixels_in_polygons"], pixels)
    }
    names = wanted(config, made["ratios"])
    return {
        "name": file.name,
        "file": str(file.path.absolute()),
        "format": slide.vendor,
        "levels": [[level.width, level.height] for level in slide.levels],
        "mpp": slide.mpp,
        "mpp_xy": list(slide.mpp_xy),
        "metadata_mpp": slide.metadata_mpp,
        "objective_power": slide.objective_power,
        "bounds": list(slide.bounds),
        "size": [view.width, view.height],
        **made,
        "polygon_shares": shares,
        "networks": {phase: origin._asdict() for phase, origin in networks.origins.items()},
        "runs": {"phase1": config.phase1, "phase2": config.phase2},
        "warnings": [
            *slide.warnings,
            *filter(None, [view.warning, tissue_note]),
            *provenance.warnings(networks.origins, config.mpp),
            *_polygon_warnings(folder, shares),
        ],
        "files": [name for name in FILES if name in names],
    }


def _polygon_warnings(folder: Path, shares: Mapping[str, float | None]) -> list[str]:
    found = []
    megabytes = (folder / POLYGONS).stat().st_size // 1_000_000
    if megabytes > _LARGE_FILE:
        found.append(
            f"{POLYGONS} has {megabytes} MB, which viewers open slowly or not at all: set "
            "--config.geojson.min_area=2000 and --config.geojson.simplify=2"
        )
    off = [
        f"{share:.0%} of the area of {name}"
        for name, share in shares.items()
        if share is not None and abs(share - 1) > _FAR_OFF
    ]
    if off:
        found.append(
            f"the polygons of {POLYGONS} hold {', '.join(off)}: measure on the label map and take "
            f"areas from {AREAS}, or set --config.geojson.min_area=0"
        )
    return found


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    dataset: Dataset,
    pictures: slide_pictures.SlidePictures,
) -> None:
    """Writes the report, and last the summary, by which the folder is finished.

    Args:
      folder: of the slide.
      summary: what `describe` returned, with the settings, tiles, times and versions of the run.
      dataset: of the networks.
      pictures: as `make_pictures` returned.
    """
    in_pictures = dataclasses.replace(dataset, palette=tuple(pictures.palette))
    report = slide_pages.SlideReport(
        summary["name"],
        pictures,
        summaries.areas(summary, in_pictures),
        summaries.ratios(summary),
        summaries.facts(summary),
        summary["warnings"],
        {name: FILES[name] for name in [*summary["files"], results.SUMMARY]},
    )
    slide_pages.write_report(folder / slide_pages.REPORT, report)
    written = [*summary["files"], slide_pictures.SMALL, slide_pages.REPORT]
    summary = {**summary, "sizes": {name: (folder / name).stat().st_size for name in written}}
    with atomic_path(folder / results.SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
