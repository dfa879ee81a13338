"""The tissue map of one slide: from the file to a folder with everything that is known of it.

A folder is finished when `slide.json` is in it, which is written last and holds the settings that
all was made with. The map's parts stay beside it: other polygons or pictures need no new tiles.
"""

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import ml_collections
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import masks, progress
from wsss_jax.errors import InputError
from wsss_jax.files import clear_unfinished, hold_lock
from wsss_jax.report import slide_pages
from wsss_jax.slides.mapping import stitching
from wsss_jax.slides.mapping.networks import Networks
from wsss_jax.slides.mapping.parts import Parts
from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.mapping.tissue_search import find_tissue, is_scanned_in_part, mask_file_of
from wsss_jax.slides.outputs import areas, outputs, results
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.reading import Slide, View, open_slide
from wsss_jax.wording import counted, two_digits

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

    Writes into `folder` the files of `outputs.FILES` and `report.html`, those whose settings have
    changed. The label map, the polygons and the areas are the same to the byte however often the
    work was interrupted.

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
        process works on it; or the folder is that of another slide, or of no slide.
    """
    begun = time.monotonic()
    with open_slide(file.path, file.mpp) as slide:
        view = View(slide, config.mpp, config.resampling)
        mask_file = mask_file_of(config.tissue.source, file)
        settings = _settings(config, dataset, networks, slide, mask_file)
        wanted = outputs.wanted(config, areas.ratio_names(dataset.roles))
        origins = {phase: origin._asdict() for phase, origin in networks.origins.items()}
        sources = outputs.Sources(config, dataset, networks, file, slide, view)
        overview = lru_cache(partial(view.overview, outputs.OVERVIEW))

        def look_for_tissue() -> tuple[Tissue, str]:
            return find_tissue(config, view, *overview(), mask_file)

        def what_changed(before: Mapping[str, Any] | None) -> str:
            """Why the folder is not finished, if it once was."""
            if before is None:
                return ""
            _check_same_slide(before, settings, file, folder)
            changed = _changed(before["settings"], settings)
            if not changed and before.get("networks") != origins:
                changed.append("history of the networks")
            if changed:
                return f"other {', '.join(changed)}"
            is_whole = partial(outputs.is_whole, folder, before)
            whole = all(map(is_whole, [*wanted, slide_pages.REPORT]))
            return "" if whole else "files that are gone or cut"

        finished_before = f"{file.name}: finished before"
        before = results.read_summary(folder)
        if before is not None and not what_changed(before):
            return finished_before  # nothing to write, nobody to keep out
        results.check_ours(folder)
        with hold_lock(folder / results.PARTS / results.LOCK):
            before = results.read_summary(folder)  # another process may have been at work
            if what := what_changed(before):
                tqdm.write(f"{file.name}: was finished with {what}: done again")
            elif before is not None:
                return finished_before
            same_map = before is not None and before["settings"]["map"] == settings["map"]
            tissue, note = (None, before.get("tissue_note", "")) if same_map else look_for_tissue()
            names = outputs.outdated(folder, wanted, before if same_map else None, settings)
            # In a folder that was begun, what is called as a result is one.
            listed = outputs.FILES.keys() if before is None else before["files"]
            for name in (outputs.FILES.keys() & set(listed)) - wanted - {results.SUMMARY}:
                (folder / name).unlink(missing_ok=True)
            (folder / results.SUMMARY).unlink(missing_ok=True)
            clear_unfinished(folder)
            parts = Parts(
                folder / results.PARTS,
                view.width,
                view.height,
                settings["map"],
                channels=dataset.num_classes if config.probabilities else 0,
            )
            if same_map and not parts.missing():
                total, left, tissue_pixels = before["tiles"], 0, before["tissue_pixels"]
            else:
                if tissue is None:
                    tissue, note = look_for_tissue()
                tissue_pixels = tissue.area()
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
            made = outputs.write_maps(sources, folder, parts, names, tissue_pixels, before)
            pictures = outputs.make_pictures(sources, folder, parts, names, overview)
            summary = outputs.describe(sources, folder, made, note) | {
                "tissue_pixels": tissue_pixels,
                "tissue_note": note,
                "settings": settings,
                "tiles": total,
                "tiles_of_last_start": left,
                "seconds": {"tiles": stitched, "all": time.monotonic() - begun},
                "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
            }
            outputs.write_report(folder, summary, dataset, pictures)
    seconds = two_digits(summary["seconds"]["all"])
    if not left:
        return f"{file.name}: no new tiles, files written in {seconds} s"
    rate = two_digits(left / stitched)
    return f"{file.name}: {counted(total, 'tile')} in {seconds} s, {rate} tiles/s"


def _check_same_slide(
    before: Mapping[str, Any], settings: Mapping[str, Any], file: SlideFile, folder: Path
) -> None:
    """Refuses a folder with the map of a slide that has other content and lies elsewhere."""
    # Summaries of version 0.1 hold the path as it was given.
    own = {str(file.path), str(file.path.absolute())}
    same_content = before["settings"]["map"].get("slide") == settings["map"]["slide"]
    if not same_content and before["file"] not in own:
        raise InputError(
            f"{file.path}: {folder} {results.OF_ANOTHER}, {before['file']}; name another "
            "--workdir, or rename this slide"
        )


def _settings(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    networks: Networks,
    slide: Slide,
    mask_file: Path | None,
) -> dict[str, Any]:
    """What the results depend on: the map, and what is made of it."""
    precision = {
        phase: origin.precision
        for phase, origin in networks.origins.items()
        if origin.precision != origin.trained_in
    }
    tissue = config.tissue.to_dict()
    if mask_file is not None:
        if not mask_file.exists():
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
            **({"precision": precision} if precision else {}),
        },
        "output": outputs.settings(config, dataset),
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
    with progress.show_progress(
        total=total,
        initial=total - left,
        desc=name,
        unit="tile",
        disable=not show_progress,
    ) as bar:

        def done(tiles: int) -> None:
            bar.update(tiles)
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
