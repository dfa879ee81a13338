"""The tissue map of one slide: from the file to a folder with all results.

A folder is finished when `slide.json` is in it, which is written last and holds the settings that
all was made with. The map's parts stay beside it: other polygons or pictures need no new tiles.
"""

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from tqdm import tqdm

from data.dataset import Dataset
from wsss_jax import progress
from wsss_jax.errors import InputError
from wsss_jax.files import clear_unfinished, hold_lock, remove
from wsss_jax.masks import WhiteRule
from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.slides import settings
from wsss_jax.slides.mapping import stitching, white_tiles
from wsss_jax.slides.mapping.networks import Networks
from wsss_jax.slides.mapping.parts import Layout, Parts, list_changes
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.mapping.tissue_search import (
    collect_tissue_settings,
    find_mask_file,
    find_tissue,
)
from wsss_jax.slides.outputs import areas, findings, map_files, result_files, results
from wsss_jax.slides.preview import Preview
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import check_mpp, open_slide
from wsss_jax.slides.reading.view import View
from wsss_jax.wording import format_count, format_two_digits

# Settings that change a map only by how a network rounds: a finished one without them stays.
_ROUNDING = ("batch_norm", "white_tiles")
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
    """Makes the tissue map of a slide, resumes it, or finds that it is finished.

    Writes into `folder` those of `result_files.FILES` and `report.html` whose settings have
    changed. The label map, the polygons and the areas are the same to the byte however often the
    work was interrupted.

    Args:
      config: of the job "segment", complete.
      dataset, networks: those that `config` names.
      file: the slide.
      folder: for the results; created if missing.
      show_progress: whether to show a progress line.
      after_batch: called after each batch of tiles; its errors end the work.

    Returns:
      one line that says what was done.

    Raises:
      InputError: the slide cannot be read, has no known resolution, or no tissue; another process
        works on it; or the folder belongs to another slide, or has other files.
    """
    start = time.monotonic()
    with open_slide(file.path, file.mpp) as slide:
        view = View(slide, config.mpp, config.resampling)
        sources = result_files.Sources(config, dataset, networks, file, slide, view)
        run = _Run(sources, folder)
        before = results.read_summary(folder)
        if before is not None and not run.describe_changes(before):
            return f"{file.name}: finished before"  # without a lock: nothing is written
        results.check_result_folder(folder)
        with hold_lock(folder / results.PARTS / results.LOCK), closing(run):
            before = results.read_summary(folder)  # another process may have finished it since
            if before is not None:
                changes = run.describe_changes(before)
                if not changes:
                    return f"{file.name}: finished before"
                tqdm.write(f"{file.name}: was finished with {changes}: done again")
            names = run.prepare_folder(before)
            tissue_map = run.compute_map(before, show_progress, after_batch)
            seconds = {"tiles": time.monotonic() - start}
            parts, pixels = tissue_map.parts, tissue_map.tissue_pixels
            made = map_files.write_maps(sources, folder, parts, names, pixels, before)
            made |= run.examine_map(tissue_map, before)
            pictures = result_files.make_pictures(sources, folder, parts, names, run.read_overview)
            of_places = findings.make_pictures(
                view, parts, made["places"], config.places.thumbnail, pictures.legend
            )
            seconds["all"] = time.monotonic() - start
            summary = run.summarize(tissue_map, made, seconds)
            result_files.write_report(folder, summary, pictures, of_places)
    return f"{file.name}: {_describe_work(tissue_map, seconds)}"


class _TissueMap(NamedTuple):
    """The finished map of a slide.

    Attributes:
      parts: its parts.
      tiles: number of tiles of the slide.
      new_tiles: number of tiles computed in this run.
      tissue_pixels: working pixels of tissue.
      tissue_note: a sentence on the tissue, or "".
    """

    parts: Parts
    tiles: int
    new_tiles: int
    tissue_pixels: int
    tissue_note: str


def _describe_work(tissue_map: _TissueMap, seconds: Mapping[str, float]) -> str:
    total = format_two_digits(seconds["all"])
    if not tissue_map.new_tiles:
        return f"no new tiles, files written in {total} s"
    rate = format_two_digits(tissue_map.new_tiles / seconds["tiles"])
    return f"{format_count(tissue_map.tiles, 'tile')} in {total} s, {rate} tiles/s"


class _Run:
    """One slide that is segmented into one folder.

    In its methods `before` is the summary of an earlier run, or None if none was finished.

    Attributes:
      sources: the slide, the networks and the configuration.
      folder: for the results.
      settings: all that the results depend on.
      read_overview: reads the overview at `result_files.OVERVIEW`, once.
    """

    def __init__(self, sources: result_files.Sources, folder: Path):
        config, view = sources.config, sources.view
        mask_file = find_mask_file(config.tissue.source, sources.file)
        self.sources, self.folder = sources, folder
        self.settings = self._own_settings = _collect_settings(sources, mask_file)
        ratios = areas.list_ratios(sources.dataset.roles)
        self._wanted = result_files.list_files(config, ratios, sources.slide.vendor)
        # Both read the slide, which may take long: only if they are needed, and once.
        read_overview = lru_cache(partial(view.read_overview, result_files.OVERVIEW))
        self.read_overview: Callable[[], tuple[np.ndarray, float]] = read_overview
        self._find_tissue: Callable[[], tuple[Tissue, str]] = lru_cache(
            lambda: find_tissue(config, view, *read_overview(), mask_file)
        )
        self._preview: Preview | None = None

    def close(self) -> None:
        """Removes what only a slide at work has."""
        if self._preview:
            (self.folder / slide_pictures.PREVIEW).unlink(missing_ok=True)

    def describe_changes(self, before: Mapping[str, Any]) -> str:
        """Says why a folder with a summary is not finished for these settings; "" if it is.

        Raises:
          InputError: the folder has the map of a slide of other content at another path.
        """
        path, origins = self.sources.file.path, self.sources.networks.origins
        same_content = before["settings"]["map"].get("slide") == self.settings["map"]["slide"]
        # Summaries of version 0.1 hold the path as it was given.
        if not same_content and before["file"] not in (str(path), str(path.absolute())):
            raise InputError(
                f"{path}: {self.folder} {results.OTHER_SLIDE}, {before['file']}; name another "
                "--workdir, or rename this slide"
            )
        self._adopt(before)
        old, new = ({**s["map"], **s["output"]} for s in (before["settings"], self.settings))
        changed = list_changes(old, new)
        known = {phase: origin._asdict() for phase, origin in origins.items()}
        if not changed and before.get("networks") != known:
            changed.append("history of the networks")
        if changed:
            return f"other {', '.join(changed)}"
        names = [*self._wanted, slide_pages.REPORT]
        is_whole = all(result_files.is_whole(self.folder, before, name) for name in names)
        return "" if is_whole else "files that are missing or cut short"

    def _adopt(self, before: Mapping[str, Any]) -> None:
        """Takes over the settings of a finished map that is the same but for rounding."""
        own, old = self._own_settings["map"], before["settings"]
        adopted = {key: value for key, value in own.items() if key not in _ROUNDING}
        lacks_channels = self.sources.config.probabilities and not old["output"]["probabilities"]
        if old["map"] == adopted and not lacks_channels:
            self.settings = {**self._own_settings, "map": adopted}

    def prepare_folder(self, before: Mapping[str, Any] | None) -> set[str]:
        """Removes results that are no longer wanted; returns the names of the files to write.

        Errors about the tissue come first, while all results are still there.
        """
        if self.settings is not self._own_settings and self._open_parts().missing:
            self.settings = self._own_settings  # it is computed, and now by these
        same_map = before if before is not None and self._has_map(before) else None
        if same_map is None:
            self._find_tissue()
        names = result_files.find_outdated(self.folder, self._wanted, same_map, self.settings)
        # Without a summary any file with the name of a result is one of an unfinished run.
        listed = result_files.FILES.keys() if before is None else before["files"]
        if before is None:
            (self.folder / slide_pictures.PREVIEW).unlink(missing_ok=True)
        for name in (result_files.FILES.keys() & set(listed)) - self._wanted - {results.SUMMARY}:
            remove(self.folder / name)
        (self.folder / results.SUMMARY).unlink(missing_ok=True)
        clear_unfinished(self.folder)
        return names

    def _has_map(self, before: Mapping[str, Any]) -> bool:
        return before["settings"]["map"] == self.settings["map"]

    def _open_parts(self) -> Parts:
        config, view = self.sources.config, self.sources.view
        return Parts(
            self.folder / results.PARTS,
            Layout(view.width, view.height),
            self.settings["map"],
            channels=self.sources.dataset.num_classes if config.probabilities else 0,
        )

    def compute_map(
        self,
        before: Mapping[str, Any] | None,
        show_progress: bool,
        after_batch: Callable[[], None],
    ) -> _TissueMap:
        """Computes the missing parts of the map."""
        config, dataset, view = self.sources.config, self.sources.dataset, self.sources.view
        parts = self._open_parts()
        if before is not None and self._has_map(before) and not parts.missing:
            tissue_pixels, note = before["tissue_pixels"], before.get("tissue_note", "")
            return _TissueMap(parts, before["tiles"], 0, tissue_pixels, note)
        tissue, note = self._find_tissue()
        inputs = stitching.MapInputs(
            view.read,
            tissue,
            self.sources.networks.predict,
            dataset.num_classes,
            WhiteRule(config.white_threshold, config.white_min_area) if dataset.white else None,
            self.sources.networks.gate,
        )
        plan = Plan.of(tissue, settings.make_tiling(config))
        if inputs.white:
            overview, factor = self.read_overview()
            plan = plan.without(white_tiles.find(inputs, plan, overview, factor, after_batch))
        total, left = plan.count(), plan.count(parts.missing)
        with progress.show_progress(
            total=total,
            initial=total - left,
            desc=self.sources.file.name,
            unit="tile",
            disable=not show_progress,
        ) as line:
            if self._wants_preview(total):
                overview, _ = self.read_overview()
                path = self.folder / slide_pictures.PREVIEW
                self._preview = Preview(path, self.sources, inputs, overview, parts)
                self._preview.begin(plan.tiling, total, after_batch)

            def count(tiles: int) -> None:
                line.update(tiles)
                if self._preview:
                    self._preview.refresh()
                after_batch()

            shared = stitching.list_shared_columns(inputs, plan, parts.layout)
            with view.share_columns(shared, parts.folder):
                stitching.stitch(inputs, plan, parts, count)
            if self._preview:
                self._preview.refresh()
        return _TissueMap(parts, total, left, tissue.count_pixels(), note)

    def _wants_preview(self, total: int) -> bool:
        """Whether a map of `total` tiles takes so long that its coarse map is of use meanwhile."""
        wanted = self.sources.config.preview
        is_free = not (self.folder / slide_pictures.PREVIEW).exists()  # else it is the user's
        return wanted.share > 0 and total >= wanted.min_tiles and is_free

    def examine_map(
        self, tissue_map: _TissueMap, before: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Returns the `findings` on the map, those of an earlier run if they still hold."""
        same_map = before if before is not None and self._has_map(before) else None
        found = findings.keep(same_map, self.settings) if same_map is not None else None
        if found is None:
            config, dataset = self.sources.config, self.sources.dataset
            found = findings.find(config, dataset, self.sources.frame, tissue_map.parts)
        return found

    def summarize(
        self, tissue_map: _TissueMap, made: Mapping[str, Any], seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Returns the content of `slide.json`.

        Args:
          tissue_map, made: the map, and what `map_files.write_maps` returned and `examine_map`
            found.
          seconds: spent until the map was stitched ("tiles"), and until all was written ("all").
        """
        note = tissue_map.tissue_note
        return result_files.summarize_slide(self.sources, self.folder, made, note) | {
            "tissue_pixels": tissue_map.tissue_pixels,
            "tissue_note": note,
            "settings": self.settings,
            "tiles": tissue_map.tiles,
            "tiles_of_last_start": tissue_map.new_tiles,
            "seconds": seconds,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        }


def _collect_settings(sources: result_files.Sources, mask_file: Path | None) -> dict[str, Any]:
    """Collects all that the results depend on: "map", and "output" for what is made of it."""
    config, dataset, networks = sources.config, sources.dataset, sources.networks
    slide = sources.view.slide
    precision = {
        phase: origin.precision
        for phase, origin in networks.origins.items()
        if origin.precision != origin.trained_in
    }
    white = [config.white_threshold, config.white_min_area] if dataset.white else None
    return {
        "map": {
            "slide": catalog.fingerprint(slide.path),
            "slide_mpp": list(check_mpp(slide)),
            "mpp": config.mpp,
            "resampling": config.resampling,
            "networks": networks.checksums,
            "gate": _collect_gate(config) if config.phase1 else None,
            "tile": config.tile,
            "stride": config.stride,
            "window": config.window,
            "batch_size": config.batch_size,
            "tissue": collect_tissue_settings(config, slide, mask_file),
            "white": white,
            # Maps of versions without these fields have neither.
            **({"precision": precision} if precision else {}),
            **({"tta": config.tta} if config.tta != "none" else {}),
            **({"min_tissue_share": share} if (share := config.min_tissue_share) else {}),
            "batch_norm": "folded",
            **({"white_tiles": "left out"} if dataset.white else {}),
        },
        "output": result_files.collect_settings(config, dataset),
    }


def _collect_gate(config: ml_collections.ConfigDict) -> dict[str, Any]:
    gate = config.gate.to_dict()
    if not gate["stride"]:
        del gate["stride"]  # as in maps of versions without the field
    return gate
