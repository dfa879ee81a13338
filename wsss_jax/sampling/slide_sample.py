"""The patches of one slide: drawn, cut, measured, judged, and written.

A patch is written as soon as it is read, so that an interrupted slide goes on from what is there.
Other thresholds need no pixel of the slide.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from data.patch_files import read_image, write_image_quickly
from wsss_jax import progress
from wsss_jax.errors import InputError
from wsss_jax.files import clear_unfinished, hold_lock
from wsss_jax.sampling import quality, sheets, summaries
from wsss_jax.sampling.positions import draw_positions, find_area, place_grid
from wsss_jax.sampling.selection import select_patches
from wsss_jax.sampling.summaries import Folders
from wsss_jax.slides.mapping.parts import list_changes
from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.mapping.tissue_search import (
    collect_tissue_settings,
    find_mask_file,
    find_tissue,
)
from wsss_jax.slides.outputs.geojson import Square, write_squares
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import check_mpp, open_slide
from wsss_jax.slides.reading.view import View

BY_HAND, KEPT_BY_HAND = "by hand", "kept by hand"  # reasons
SQUARES = "kept.geojson"
_LOCK = "lock"
OVERVIEW = 2048  # pixels, longer side of the overview on which tissue is found
READERS = 4  # threads; decoding and compressing release the interpreter lock
_COLOR = (0, 114, 178)  # of the kept squares in QuPath


def sample_slide(
    config: ml_collections.ConfigDict,
    keep: Mapping[str, bool],
    file: SlideFile,
    folders: Folders,
    *,
    show_progress: bool = True,
    after_batch: Callable[[], None] = lambda: None,
) -> str:
    """Cuts the patches of a slide, goes on with them, or finds that they are finished.

    The positions depend on the settings, the seed and the content of the slide alone.

    Args:
      config: of the job "sample".
      keep: name of a patch -> whether it is kept, whatever its measures say.
      file: the slide.
      folders: for its patches and other results.
      show_progress: whether to show a progress line.
      after_batch: called after each patch; its errors end the work.

    Returns:
      one line that says what was done.

    Raises:
      InputError: the slide cannot be read, has no known resolution, no tissue, or no room for a
        patch; it was sampled with other settings; or another process works on it.
    """
    summaries.check_slide_name(file)
    with open_slide(file.path, file.mpp) as slide, hold_lock(folders.results / _LOCK):
        view = View(slide, config.mpp, config.resampling)
        clear_unfinished(folders.results)
        summary = _begin(config, view, file, folders)
        names = summaries.name_patches(summary, file.name)
        # A later version may have measures that an earlier one had not.
        is_measured = quality.MEASURES.keys() <= summary.get("measures", {}).keys()
        if not is_measured or not set(names) <= folders.find_patches().keys():
            summary["measures"] = _cut_patches(
                view, summary, names, folders, show_progress, after_batch
            )
        judgment = _judge(summary["measures"], names, config.quality.to_dict(), keep)
        places = {
            name: (folders.kept if kept else folders.dropped) / f"{name}.png"
            for name, kept in zip(names, judgment["kept"], strict=True)
        }
        is_same = all(summary.get(key) == value for key, value in judgment.items())
        if is_same and all(map(Path.is_file, [*places.values(), folders.results / SQUARES])):
            return f"{file.name}: finished before"
        summary |= judgment
        _move_patches(places, folders)
        _write_pictures(summary, places, folders, file.name, view)
        summaries.write_summary(folders.results, summary)
    return _describe(summary, file.name)


def _begin(
    config: ml_collections.ConfigDict, view: View, file: SlideFile, folders: Folders
) -> dict[str, Any]:
    """Reads the record of a slide, or begins one with its positions.

    Raises:
      InputError: it was sampled with other settings, or there are patches without a record.
    """
    mask_file = find_mask_file(config.tissue.source, file)
    settings = _collect_settings(config, view, mask_file)
    summary, there = summaries.read_summary(folders.results), folders.find_patches()
    remedy = f"remove {folders.kept}, {folders.dropped} and {folders.results}"
    if summary is not None:
        changes = list_changes(summary["settings"], settings)
        if not changes:
            return summary
        if summaries.is_finished(summary):
            what = "a slide of other content" if "slide" in changes else "other settings"
            raise InputError(
                f"{file.path}: there are patches of it, of {what} ({', '.join(changes)}): set all "
                f"as it was, name another --config.out, or {remedy}"
            )
        for path in there.values():  # of a start with other settings that came to no end
            path.unlink()
    elif there:
        raise InputError(
            f"{file.path}: there are patches of it, but no {folders.results / summaries.SUMMARY}: "
            f"{remedy}, or name another --config.out"
        )
    overview, factor = view.read_overview(OVERVIEW)
    tissue, note = find_tissue(config, view, overview, factor, mask_file)
    positions = _choose_positions(config, view, tissue, settings["slide"])
    notes = [*view.slide.warnings, view.warning, note]
    summary = {
        "file": str(file.path.absolute()),
        "settings": settings,
        "slide_mpp": list(check_mpp(view.slide)),
        "scale": list(view.scale),
        "note": "; ".join(filter(None, notes)),
        "positions": positions.tolist(),
    }
    summaries.write_summary(folders.results, summary)
    return summary


def _choose_positions(
    config: ml_collections.ConfigDict, view: View, tissue: Tissue, content: Mapping[str, Any]
) -> np.ndarray:
    """Chooses the upper left corners of the patches, (n, 2) int64 working pixels.

    Raises:
      InputError: there is no room for any.
    """
    side, area = config.size, find_area(view)
    if config.layout == "grid":
        positions = place_grid(tissue, area, side, config.max_overlap)
    else:
        seed = [config.seed, content["bytes"], int(content["crc32"], 16)]
        rng = np.random.default_rng(seed)
        positions = draw_positions(tissue, area, side, config.count, config.max_overlap, rng)
    if not len(positions):
        raise InputError(
            f"{view.slide.path}: no patch of {side} x {side} pixels at {config.mpp:g} micrometers "
            f"per pixel has its center on tissue and room around it, in {area.right - area.left} x "
            f"{area.bottom - area.top} pixels; set a smaller --config.size or --config.mpp"
        )
    return positions


def _collect_settings(
    config: ml_collections.ConfigDict, view: View, mask_file: Path | None
) -> dict[str, Any]:
    """Collects all that the patches depend on, before they are judged."""
    fields = ("mpp", "resampling", "size", "layout", "max_overlap")
    random = ("count", "seed") if config.layout == "random" else ()
    return {
        "slide": catalog.fingerprint(view.slide.path),
        "slide_mpp": list(check_mpp(view.slide)),
        "tissue": collect_tissue_settings(config, view.slide, mask_file),
        **{field: config[field] for field in (*fields, *random)},
    }


def _cut_patches(
    view: View,
    summary: Mapping[str, Any],
    names: list[str],
    folders: Folders,
    show_progress: bool,
    after_batch: Callable[[], None],
) -> dict[str, list[float | None]]:
    """Reads and writes the patches that are missing, and measures all; column -> (N,) values."""
    settings, positions = summary["settings"], summary["positions"]
    there = folders.find_patches()
    folders.cut.mkdir(parents=True, exist_ok=True)

    def cut(index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        if names[index] in there:
            patch = read_image(there[names[index]], settings["size"])
        else:
            x, y = positions[index]
            patch = view.read_alone(x, y, settings["size"])
            write_image_quickly(folders.cut / f"{names[index]}.png", patch)
        patches = patch[None]
        return quality.measure_patches(patches, view.mpp), quality.make_thumbnails(patches)

    # Row by row, so that what a slide keeps in its cache serves again.
    order = sorted(range(len(names)), key=lambda index: positions[index][::-1])
    results: list[Any] = [None] * len(names)
    pool = ThreadPoolExecutor(READERS)
    try:
        with progress.show_progress(
            total=len(names), desc=view.slide.name, unit="patch", disable=not show_progress
        ) as line:
            for index, result in zip(order, pool.map(cut, order)):
                results[index] = result
                line.update()
                after_batch()
    finally:
        pool.shutdown(cancel_futures=True)
    columns = {
        column: np.concatenate([measures[column] for measures, _ in results])
        for column in quality.MEASURES
    }
    thumbnails = np.concatenate([thumbnail for _, thumbnail in results])
    columns["nearest"] = quality.measure_nearest(thumbnails)
    return {column: _to_list(each) for column, each in columns.items()}


def _to_list(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _judge(
    measures: Mapping[str, list[float | None]],
    names: list[str],
    thresholds: dict[str, float],
    keep: Mapping[str, bool],
) -> dict[str, Any]:
    """Judges the patches of a slide: what is added to its record."""
    given = {column: np.array(values, np.float64) for column, values in measures.items()}
    selection = select_patches(given, thresholds)
    kept, reasons = [], []
    for name, found in zip(names, selection.reasons, strict=True):
        kept.append(keep.get(name, not found))
        texts = list(found)
        if name in keep and keep[name] == bool(found):
            texts = [KEPT_BY_HAND, *found] if keep[name] else [BY_HAND]
        reasons.append(" + ".join(texts))
    return {
        "thresholds": thresholds,
        "measures": {column: _to_list(each) for column, each in selection.measures.items()},
        "kept": kept,
        "reasons": reasons,
    }


def _move_patches(places: Mapping[str, Path], folders: Folders) -> None:
    """Moves each patch to its place; removes folders that are empty then."""
    there = folders.find_patches()
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if there[name] != place:
            os.replace(there[name], place)
    for folder in (folders.cut, folders.dropped, folders.kept):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_pictures(
    summary: dict[str, Any],
    places: Mapping[str, Path],
    folders: Folders,
    slide: str,
    view: View,
) -> None:
    """Writes the contact sheets, and the kept squares for QuPath."""
    side = summary["settings"]["size"]
    kept: list[sheets.SheetPatch] = []
    dropped: dict[str, list[sheets.SheetPatch]] = {}
    squares = []
    for index, (name, path) in enumerate(places.items()):
        corner = summaries.find_corner(summary, index)
        measures = summaries.get_measures(summary, index)
        patch = sheets.SheetPatch(path, corner, measures)
        if not summary["kept"][index]:
            dropped.setdefault(summary["reasons"][index].partition(" + ")[0], []).append(patch)
            continue
        kept.append(patch)
        known = {column: value for column, value in measures.items() if not math.isnan(value)}
        squares.append(Square(name, *corner, side * view.scale[0], side * view.scale[1], known))
    sheets.write_sheets(folders.results, slide, kept, dropped)
    write_squares(folders.results / SQUARES, squares, "patch", _COLOR, view.slide.bounds[:2])


def _describe(summary: Mapping[str, Any], slide: str) -> str:
    count, kept = len(summary["kept"]), sum(summary["kept"])
    of_reasons = Counter(
        reason.partition(" + ")[0]
        for reason, is_kept in zip(summary["reasons"], summary["kept"])
        if not is_kept
    )
    dropped = "".join(f", {number} {reason}" for reason, number in of_reasons.most_common())
    wanted = summary["settings"].get("count", count)
    few = f" of {wanted}: no room for more" if count < wanted else ""
    note = f" ({summary['note']})" if summary["note"] else ""
    return f"{slide}: {count} patches{few}; {kept} kept{dropped}{note}"
