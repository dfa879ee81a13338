"""Writes the files of a slide that come from its map: maps, polygons and tables."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wsss_jax.report.colors import make_legend
from wsss_jax.slides.mapping.parts import Parts
from wsss_jax.slides.outputs import areas, pyramid
from wsss_jax.slides.outputs.geojson import PolygonRule, write_geojson
from wsss_jax.slides.outputs.result_files import (
    AREAS,
    COLOR_MAP,
    LABEL_MAP,
    POLYGONS,
    PROBABILITIES,
    RATIOS,
    Sources,
)
from wsss_jax.slides.reading import catalog


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
