"""The tissue map of one slide: from the file to a folder with everything that is known of it.

A folder is finished when `slide.json` is in it, which is written last and holds the settings that
all was made with. The map's parts stay beside it: other polygons or pictures need no new tiles.
"""

import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import ml_collections
import numpy as np
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import masks, training
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, clear_unfinished, locked
from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.slides import areas, catalog, polygons, pyramid, stitching, summaries
from wsss_jax.slides.catalog import SlideFile
from wsss_jax.slides.networks import Networks
from wsss_jax.slides.parts import Parts
from wsss_jax.slides.reading import Slide, View, open_slide
from wsss_jax.slides.tissue import Tissue
from wsss_jax.slides.tissue_search import find_tissue, is_scanned_in_part, mask_file_of

SUMMARY = "slide.json"
LABEL_MAP = "label_map.ome.tif"
PROBABILITIES = "probabilities.ome.tif"
POLYGONS = "tissue.geojson"
AREAS = "areas.csv"
PARTS = "parts"
_LOCK = "lock"  # in the folder of parts
FILES = {
    LABEL_MAP: "label map, a value for each class, pyramidal OME-TIFF (QuPath, tifffile)",
    PROBABILITIES: "mean probability of each class, 0 to 255, pyramidal OME-TIFF",
    POLYGONS: "regions as annotations for QuPath, in pixels of the slide",
    AREAS: "areas and ratios, for spreadsheets",
    slide_pictures.OVERLAY: "classes over the tissue",
    slide_pictures.THUMBNAIL: "the slide",
    SUMMARY: "everything this report states, for programs",
}
OVERVIEW = 2048  # pixels, longer side of the overview that tissue is looked for on
_MUCH = 100  # megabytes of polygons
_VERSIONS = ("jax", "jaxlib", "flax", "numpy", "openslide-python", "tifffile", "rasterio")


def segment_slide(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    networks: Networks,
    file: SlideFile,
    folder: Path,
    *,
    show_progress: bool = True,
    after_batch: Callable[[], None] = lambda: None,
) -> str:
    """Makes the tissue map of a slide, goes on with it, or finds that it is finished.

    Writes into `folder` the files of `FILES` and `report.html`. The label map, the polygons and the
    areas are the same to the byte however often the work was interrupted.

    Args:
      config: of the job "segment", settled.
      dataset: of the networks.
      networks: as loaded with `config`.
      file: the slide.
      folder: where to; made if need be.
      show_progress: a progress line.
      after_batch: called after each batch of tiles; what it raises ends the work.

    Returns:
      one line that says what was done.

    Raises:
      InputError: the slide cannot be read, has no known resolution, or no tissue; another
        process works on it; or the folder is that of another slide.
    """
    begun = time.monotonic()
    with open_slide(file.path, file.mpp) as slide:
        view = View(slide, config.mpp, config.resampling)
        mask_file = mask_file_of(config.tissue.source, file)
        settings = _settings(config, dataset, networks, slide, mask_file)
        before = read_summary(folder)
        if before is not None:
            same_content = before["settings"]["map"].get("slide") == settings["map"]["slide"]
            if not same_content and before.get("file") != str(file.path):
                raise InputError(
                    f"{file.path}: {folder} has the map of another slide, {before.get('file')}; "
                    "name another --workdir, or rename this slide"
                )
            changed = _changed(before["settings"], settings)
            if not changed and all((folder / name).is_file() for name in before["files"]):
                return f"{file.name}: finished before"
            what = f"other {', '.join(changed)}" if changed else "files that are gone"
            tqdm.write(f"{file.name}: was finished with {what}: done again")
        overview, factor = view.overview(OVERVIEW)
        tissue, mask_note = find_tissue(config, view, overview, factor, mask_file)
        with locked(folder / PARTS / _LOCK):
            (folder / SUMMARY).unlink(missing_ok=True)
            clear_unfinished(folder)
            parts = Parts(
                folder / PARTS,
                view.width,
                view.height,
                settings["map"],
                channels=dataset.num_classes if config.probabilities else 0,
            )
            total, left = _stitch(
                config,
                dataset,
                networks,
                view,
                tissue,
                parts,
                name=file.name,
                show_progress=show_progress,
                after_batch=after_batch,
            )
            stitched = time.monotonic() - begun
            summary = _write_maps(config, dataset, slide, view, tissue, parts, file, folder)
            summary["warnings"] += [mask_note] if mask_note else []
            summary |= {
                "settings": settings,
                "runs": {"phase1": config.phase1, "phase2": config.phase2},
                "tiles": total,
                "tiles_of_last_start": left,
                "seconds": {"tiles": stitched, "all": time.monotonic() - begun},
                "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
            }
            pictures = _pictures(config, dataset, view, overview, factor, parts)
            _finish(folder, summary, dataset, pictures)
    rate = f", {left / stitched:.0f} tiles/s" if left else ""
    return f"{file.name}: {total:,} tiles in {summary['seconds']['all']:.0f} s{rate}"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What `slide.json` says of a finished folder; None if it is not finished, or not ours."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    ours = isinstance(summary, dict) and {"settings", "files"} <= summary.keys()
    return summary if ours else None


def _settings(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    networks: Networks,
    slide: Slide,
    mask_file: Path | None,
) -> dict[str, Any]:
    """What the results depend on: the map, and what is made of it."""
    tissue = config.tissue.to_dict()
    if mask_file is not None:
        if not mask_file.is_file():
            raise InputError(
                f"{slide.path}: there is no tissue mask {mask_file}; add it, or set "
                "--config.tissue.source=detect"
            )
        tissue = {"mask": catalog.content(mask_file)}
        if is_scanned_in_part(slide):
            tissue["mask_area"] = config.tissue.mask_area
    elif tissue["source"] == "off":
        tissue = {"source": "off"}
    white = [config.white_threshold, config.white_min_area] if dataset.white else None
    return {
        "map": {
            "slide": catalog.content(slide.path),
            "slide_mpp": list(slide.mpp_xy),
            "mpp": config.mpp,
            "resampling": config.resampling,
            "networks": networks.checksums,
            "gate": config.gate.to_dict() if config.phase1 else None,
            "tile": config.tile,
            "stride": config.stride,
            "window": config.window,
            "batch_size": config.batch_size,
            "tissue": tissue,
            "white": white,
        },
        "output": {
            "classes": list(dataset.classes),
            "palette": [list(color) for color in dataset.palette],
            "roles": dict(dataset.roles),
            "probabilities": config.probabilities,
            "geojson": config.geojson.to_dict(),
            "picture": config.picture,
        },
    }


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    flat_before, flat_now = ({**both["map"], **both["output"]} for both in (before, now))
    keys = {*flat_before, *flat_now}
    return sorted(key for key in keys if flat_before.get(key) != flat_now.get(key))


def _stitch(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    networks: Networks,
    view: View,
    tissue: Tissue,
    parts: Parts,
    *,
    name: str,
    show_progress: bool,
    after_batch: Callable[[], None],
) -> tuple[int, int]:
    """Computes the parts that are missing; returns all tiles of the slide, and those computed."""
    grid = {"tile": config.tile, "stride": config.stride, "batch_size": config.batch_size}
    count = partial(stitching.plan, view.width, view.height, tissue, **grid)
    total, left = count(), count(missing=parts.missing())
    white = None
    if dataset.white:
        rule = {"threshold": config.white_threshold, "min_area": config.white_min_area}
        white = stitching.White(partial(masks.white_background, **rule), rule["min_area"])
    with tqdm(
        total=total,
        initial=total - left,
        desc=name,
        unit="tile",
        disable=not show_progress,
        **training.progress_style(),
    ) as progress:

        def done(tiles: int) -> None:
            progress.update(tiles)
            after_batch()

        stitching.stitch(
            view.read,
            tissue,
            networks.predict,
            parts,
            window=config.window,
            num_classes=dataset.num_classes,
            white=white,
            progress=done,
            **grid,
        )
    return total, left


def _write_maps(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    slide: Slide,
    view: View,
    tissue: Tissue,
    parts: Parts,
    file: SlideFile,
    folder: Path,
) -> dict[str, Any]:
    """Writes what is made of the whole map, and returns what is known of it."""
    look = {"palette": dataset.palette, "names": dataset.classes}
    size = view.width, view.height
    pyramid.write_label_map(folder / LABEL_MAP, parts.read, *size, mpp=view.mpp, **look)
    if config.probabilities:
        pyramid.write_probability_maps(
            folder / PROBABILITIES, parts.read_probability, *size, mpp=view.mpp, **look
        )
    else:
        (folder / PROBABILITIES).unlink(missing_ok=True)
    content = catalog.content(file.path)
    polygons.write_geojson(
        folder / POLYGONS,
        parts.read,
        *size,
        mpp=view.mpp,
        scale=view.scale,
        offset=slide.bounds[:2],
        slide_id=f"{file.name}/{content['bytes']}/{content['crc32']}",
        min_area=config.geojson.min_area,
        simplify=config.geojson.simplify,
        **look,
    )
    warnings = [*slide.warnings, *filter(None, [view.warning])]
    megabytes = (folder / POLYGONS).stat().st_size // 1_000_000
    if megabytes > _MUCH:
        warnings.append(
            f"{POLYGONS} has {megabytes} MB, which viewers open slowly or not at all: set "
            "--config.geojson.min_area=2000 and --config.geojson.simplify=2"
        )
    counts = areas.count(parts.read, view.height, dataset.num_classes)
    pixels = view.width * view.height
    table = areas.rows(counts, dataset.classes, view.mpp, tissue.area(), pixels)
    ratios = areas.ratios(counts, dataset.classes, dataset.roles)
    areas.write_csv(folder / AREAS, file.name, table, ratios)
    return {
        "name": file.name,
        "file": str(file.path),
        "format": slide.vendor,
        "levels": [[level.width, level.height] for level in slide.levels],
        "mpp": slide.mpp,
        "mpp_xy": list(slide.mpp_xy),
        "metadata_mpp": slide.metadata_mpp,
        "objective_power": slide.objective_power,
        "bounds": list(slide.bounds),
        "size": list(size),
        "tissue_pixels": tissue.area(),
        "areas": table,
        "ratios": ratios,
        "warnings": warnings,
        "files": [
            name
            for name in FILES
            if name != SUMMARY and (name != PROBABILITIES or config.probabilities)
        ],
    }


def _pictures(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    view: View,
    overview: np.ndarray,
    factor: float,
    parts: Parts,
) -> slide_pictures.SlidePictures:
    height, width = overview.shape[:2]
    shrink = max(1.0, max(width, height) / config.picture)
    width, height = max(1, round(width / shrink)), max(1, round(height / shrink))
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n)
        for n, size in ((height, view.height), (width, view.width))
    )
    return slide_pictures.SlidePictures(
        cv2.resize(overview, (width, height), interpolation=cv2.INTER_AREA),
        np.stack([parts.read(y, y + 1)[0, columns] for y in rows.tolist()]),
        view.mpp * factor * shrink,
        dataset.classes,
        dataset.palette,
    )


def _finish(
    folder: Path,
    summary: dict[str, Any],
    dataset: Dataset,
    pictures: slide_pictures.SlidePictures,
) -> None:
    slide_pictures.write_pictures(folder, pictures)
    report = slide_pages.SlideReport(
        summary["name"],
        pictures,
        summaries.areas(summary, dataset),
        summaries.ratios(summary),
        summaries.facts(summary),
        summary["warnings"],
        {name: FILES[name] for name in [*summary["files"], SUMMARY]},
    )
    slide_pages.write_report(folder / slide_pages.REPORT, report)
    with atomic_path(folder / SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
