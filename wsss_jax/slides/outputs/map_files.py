"""Writes the files of a slide that come from its map: maps, polygons and tables."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wsss_jax.report.colors import make_legend
from wsss_jax.slides.mapping.parts import Parts
from wsss_jax.slides.outputs import areas, pyramid
from wsss_jax.slides.outputs.dicom_seg import write_dicom_seg
from wsss_jax.slides.outputs.geojson import PolygonRule, compress, write_geojson
from wsss_jax.slides.outputs.geoparquet import SlideId, write_geoparquet
from wsss_jax.slides.outputs.ome_zarr import write_ome_zarr
from wsss_jax.slides.outputs.result_files import (
    AREAS,
    COLOR_MAP,
    DICOM_SEG,
    GEOPARQUET,
    LABEL_MAP,
    OME_ZARR,
    POLYGONS,
    POLYGONS_GZIP,
    PROBABILITIES,
    RATIOS,
    Sources,
)
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.dicom import list_slide_files


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
      names: of the files, from `result_files.find_outdated`.
      tissue_pixels: pixels of the tissue mask.
      before: the summary of an earlier run, for the numbers of files that stay.

    Returns:
      what the summary says of the map: "areas", "ratios" and "pixels_in_polygons".
    """
    dataset, file = sources.dataset, sources.file
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
    if OME_ZARR in names:
        write_ome_zarr(folder / OME_ZARR, parts.read, frame, legend, file.name)
    if DICOM_SEG in names:
        checksums = sorted(sources.networks.checksums.items())
        networks = ", ".join(f"{phase} {checksum}" for phase, checksum in checksums)
        files = list_slide_files(file.path)
        write_dicom_seg(folder / DICOM_SEG, parts.read, frame, dataset, files, networks)
    known["pixels_in_polygons"] = _write_polygons(
        sources, folder, parts, names, known["pixels_in_polygons"]
    )
    if {AREAS, RATIOS} & set(names):
        counts = areas.count_pixels(parts.read, frame.height, dataset.num_classes)
        known["areas"] = areas.tabulate_areas(counts, legend.names, frame, tissue_pixels)
        known["ratios"] = areas.compute_ratios(counts, legend.names, dataset.roles)
        areas.write_areas(folder / AREAS, {file.name: known["areas"]})
        if known["ratios"]:
            areas.write_ratios(folder / RATIOS, {file.name: known["ratios"]})
    return known


def _write_polygons(
    sources: Sources,
    folder: Path,
    parts: Parts,
    names: Collection[str],
    covered: list[float] | None,
) -> list[float]:
    """Writes the files of polygons among `names`.

    Args:
      sources, folder, parts, names: see `write_maps`.
      covered: pixels of each class in polygons, if known from an earlier run.

    Returns:
      these pixels.
    """
    geojson, frame = sources.config.geojson, sources.frame
    legend = make_legend(sources.dataset, "dataset")
    rule = PolygonRule(geojson.min_area, geojson.simplify)
    if covered is not None and not {POLYGONS, POLYGONS_GZIP, GEOPARQUET} & set(names):
        return covered
    content = catalog.fingerprint(sources.file.path)
    unique = f"{sources.file.name}/{content['bytes']}/{content['crc32']}"
    first = POLYGONS_GZIP if geojson.file == "gzip" else POLYGONS
    if first in names or covered is None:
        covered = write_geojson(folder / first, parts.read, frame, legend, unique, rule).tolist()
    if geojson.file == "both" and {POLYGONS, POLYGONS_GZIP} & set(names):
        compress(folder / POLYGONS, folder / POLYGONS_GZIP)
    if GEOPARQUET in names:
        slide = SlideId(sources.file.name, unique)
        write_geoparquet(folder / GEOPARQUET, parts.read, frame, legend, slide, rule)
    return covered
