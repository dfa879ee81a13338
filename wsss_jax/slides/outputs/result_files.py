"""The files made from a finished map: which there are; and pictures, report and summary.

`map_files` writes maps, polygons and tables. A file is written again only if settings that it
depends on have changed: other colors of the pictures leave maps, polygons and areas as they are.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from data.dataset import Dataset
from wsss_jax.files import atomic_path, measure_size
from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.report.colors import make_legend
from wsss_jax.report.legend import Legend
from wsss_jax.slides import settings
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.mapping import provenance
from wsss_jax.slides.mapping.networks import Networks
from wsss_jax.slides.mapping.parts import Parts
from wsss_jax.slides.outputs import findings, report_data, results, thumbnails
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import Slide
from wsss_jax.slides.reading.view import View

OVERVIEW = 2048  # pixels, longer side of the overview that pictures are made from
LABEL_MAP = "label_map.ome.tif"
COLOR_MAP = "label_map_rgb.tif"
PROBABILITIES = "probabilities.ome.tif"
OME_ZARR = "label_map.ome.zarr"
DICOM_SEG = "label_map.dcm"
POLYGONS = "tissue.geojson"
POLYGONS_GZIP = "tissue.geojson.gz"
GEOPARQUET = "tissue.parquet"
AREAS = "areas.csv"
RATIOS = "ratios.csv"
FILES = {
    LABEL_MAP: "label map, a value for each class, pyramidal OME-TIFF (QuPath, tifffile, bioio)",
    COLOR_MAP: "label map in colors, pyramidal RGB TIFF (OpenSlide, tiatoolbox, large_image)",
    PROBABILITIES: "mean probability of each class, 0 to 255, pyramidal OME-TIFF",
    OME_ZARR: "label map as labels of OME-Zarr 0.5 (napari and others), 0 is no class",
    DICOM_SEG: "label map as DICOM segmentation, a segment for each class",
    POLYGONS: "regions as annotations for QuPath, in pixels of the slide",
    POLYGONS_GZIP: "regions as GeoJSON, compressed: gunzip it for QuPath",
    GEOPARQUET: "regions with their areas, GeoParquet (geopandas and others)",
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
    OME_ZARR: ("classes", "palette"),
    DICOM_SEG: ("classes", "palette", "roles"),
    POLYGONS: ("classes", "palette", "geojson"),
    POLYGONS_GZIP: ("classes", "palette", "geojson"),
    GEOPARQUET: ("classes", "geojson"),
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
        "geojson": {name: config.geojson[name] for name in ("min_area", "simplify")},
        "picture": config.picture,
        "picture_palette": [list(color) for color in in_pictures.palette],
        "tables": _TABLES,
        # Only what differs from what versions without these fields did.
        **({"geojson_file": config.geojson.file} if config.geojson.file != "plain" else {}),
        **{name: True for name in ("ome_zarr", "geoparquet", "dicom_seg") if config[name]},
        **findings.collect_settings(config),
    }


def list_files(
    config: ml_collections.ConfigDict, ratios: Collection[str], vendor: str | None
) -> set[str]:
    """Lists the files of a finished slide, without report and summary.

    Args:
      config: of the job "segment".
      ratios: the ratios that the data set has the classes for, by key.
      vendor: of the slide, see `Slide`.
    """
    wanted = {
        PROBABILITIES: config.probabilities,
        OME_ZARR: config.ome_zarr,
        DICOM_SEG: config.dicom_seg and vendor == "dicom",
        POLYGONS: config.geojson.file != "gzip",
        POLYGONS_GZIP: config.geojson.file != "plain",
        GEOPARQUET: config.geoparquet,
        RATIOS: bool(ratios),
    }
    return {name for name in _DEPENDS if wanted.get(name, True)}


def is_whole(folder: Path, summary: Mapping[str, Any], name: str) -> bool:
    """Tells whether a file exists and has as many bytes as the summary says, if it says so."""
    size = measure_size(folder / name)
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


def make_pictures(
    sources: Sources,
    folder: Path,
    parts: Parts,
    names: Collection[str],
    overview: Callable[[], tuple[np.ndarray, float]],
) -> slide_pictures.SlidePictures:
    """Makes what the pictures show, and writes them if they are among `names`.

    Args:
      sources, folder, parts, names: as for `map_files.write_maps`.
      overview: what `View.read_overview` returns at `OVERVIEW`, called only if needed.
    """
    is_new = bool(set(_PICTURES) & set(names))
    if is_new:
        thumbnail = thumbnails.shrink_overview(overview()[0], sources.config.picture)
    else:  # reading the slide again may take long
        thumbnail = thumbnails.read_thumbnail(folder)
    pictures = slide_pictures.SlidePictures(
        thumbnail,
        thumbnails.sample_labels(parts.read, thumbnail, sources.frame),
        thumbnails.measure_pixel(thumbnail, sources.frame),
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
      sources: as for `map_files.write_maps`.
      folder: of the slide.
      known: what `map_files.write_maps` returned, and the `findings`.
      tissue_note: one sentence on the tissue mask, or "".
    """
    config, dataset, networks, file, slide, view = sources
    pixels = [row["pixels"] for row in known["areas"][: dataset.num_classes]]
    shares = {
        name: covered / count if count else None
        for name, covered, count in zip(dataset.classes, known["pixels_in_polygons"], pixels)
    }
    names = list_files(config, known["ratios"], slide.vendor)
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
            *filter(None, [view.warning, tissue_note, settings.describe_preview(config)]),
            *provenance.list_warnings(networks.origins, config.mpp),
            *_check_polygons(folder, shares),
        ],
        "files": [name for name in FILES if name in names],
    }


def _check_polygons(folder: Path, shares: Mapping[str, float | None]) -> list[str]:
    """Returns warnings on a file of polygons that is large, or far from the label map."""
    warnings = []
    name = POLYGONS if (folder / POLYGONS).is_file() else POLYGONS_GZIP
    megabytes = measure_size(folder / name) // 1_000_000
    if megabytes > _LARGE_FILE:
        warnings.append(
            f"{name} has {megabytes} MB, which viewers open slowly or not at all: set "
            "--config.geojson.min_area=2000 and --config.geojson.simplify=2"
        )
    deviations = [
        f"{share:.0%} of the area of {name}"
        for name, share in shares.items()
        if share is not None and abs(share - 1) > _AREA_TOLERANCE
    ]
    if deviations:
        warnings.append(
            f"the polygons of {name} hold {', '.join(deviations)}: measure on the label map "
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
    summary = {**summary, "sizes": {name: measure_size(folder / name) for name in written}}
    with atomic_path(folder / results.SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
