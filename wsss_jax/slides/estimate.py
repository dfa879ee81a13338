"""Describes a slide and estimates what segmenting it takes, for the job "doctor"."""

import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from wsss_jax import config as config_lib
from wsss_jax import symmetries
from wsss_jax.errors import InputError
from wsss_jax.findings import NOTE, PROBLEM, WARNING, Finding
from wsss_jax.slides import settings
from wsss_jax.slides.mapping import memory, networks, parts, provenance, stitching
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.tiling import Tiling, choose_stride
from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.mapping.tissue_search import find_mask_file, find_tissue
from wsss_jax.slides.outputs import result_files
from wsss_jax.slides.reading import tiff_headers
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import Slide, check_mpp, open_slide
from wsss_jax.slides.reading.view import CACHE_BYTES, View
from wsss_jax.wording import format_two_digits

_PATCH = 224  # pixels, if no run gives the size of its patches
_CLASSES = 4  # if no run gives them
_CACHES = tiff_headers.SEGMENT_BYTES + CACHE_BYTES
_OVERVIEW_BYTES = 100 << 20  # of the overview and of detecting tissue on it


def examine(config: ml_collections.ConfigDict) -> Iterator[Finding]:
    """Describes the slide of the job "doctor", and estimates what segmenting it takes.

    Yields:
      findings, up to the first problem.
    """
    path = Path(config.slide)
    try:
        with open_slide(path, config.slide_mpp or None) as slide:
            yield from _describe_slide(slide)
            check_mpp(slide)
            yield from _estimate(config, slide)
    except InputError as error:
        yield Finding("slide", " ".join(str(error).split()), PROBLEM)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (shortage := memory.describe_shortage(error)):
            raise
        yield Finding("memory", shortage, PROBLEM)


def _describe_slide(slide: Slide) -> Iterator[Finding]:
    yield Finding("format", slide.vendor)
    sizes = (f"{level.width} x {level.height}" for level in slide.levels)
    yield Finding("levels", f"{len(slide.levels)}: {', '.join(sizes)} pixels")
    if slide.is_scanned_in_part:
        x, y, width, height = slide.bounds
        yield Finding("scanned", f"{width} x {height} pixels from ({x}, {y})")
    if slide.objective_power is not None:
        yield Finding("objective", f"{slide.objective_power:g}x")
    if slide.mpp_xy is not None:
        source = "metadata" if slide.mpp == slide.metadata_mpp else "config.slide_mpp"
        across, down = slide.mpp_xy
        size = f"{slide.mpp:g}" if across == down else f"{across:g} x {down:g}"
        yield Finding("mpp", f"{size} micrometers per pixel of level 0, by {source}")
        for warning in slide.warnings:
            yield Finding("slide", warning, NOTE)


def _estimate(config: ml_collections.ConfigDict, slide: Slide) -> Iterator[Finding]:
    classes = None
    if config.phase2:
        config, dataset = settings.complete(config)
        classes = dataset.num_classes
        yield from _describe_networks(config)
    else:
        tile = config.tile or _PATCH
        stride = config.stride or choose_stride(tile)
        config = config_lib.replace(config, tile=tile, stride=stride)
    if not config.mpp:
        text = "unknown: set --config.mpp=1.0 (10x), 0.5 (20x) or 0.25 (40x), or --config.phase2"
        yield Finding("networks' mpp", text, PROBLEM)
        return
    view = View(slide, config.mpp, config.resampling)
    if view.warning:
        yield Finding("map", view.warning, NOTE)
    size = f"{view.width} x {view.height} pixels at {view.mpp:g} micrometers per pixel"
    yield Finding("map", size)
    tissue = yield from _measure_tissue(config, view)
    tiling = settings.make_tiling(config)
    plan = Plan.of(tissue, tiling)
    tiles, windows = plan.count(), plan.count_windows()
    yield Finding("tiles", f"{tiles:,} of {config.tile} pixels, every {config.stride} pixels")
    if windows:
        text = f"phase 1 classifies {windows:,} windows, every {config.gate.stride} pixels"
        yield Finding("gate", f"{text}, and not each of the tiles")
    if preview := settings.describe_preview(config):
        yield Finding("map", preview, NOTE)
    gigabytes = _estimate_bytes(tiling, view, classes or _CLASSES) / 2**30
    yield Finding("memory", f"about {gigabytes:.1f} GiB, and what JAX and the networks take")
    if config.tta != "none":
        yield Finding("tta", f"the networks see each tile {symmetries.count(config.tta)} times")
    unknown = "unknown: give --config.phase1 and --config.phase2 to measure"
    yield Finding("time", _measure_time(config, tiles, windows) if classes else unknown)


def _describe_networks(config: ml_collections.ConfigDict) -> Iterator[Finding]:
    """Describes where the networks come from, and warns where that does not fit their use."""
    origins = provenance.read_origins(config)
    for phase, origin in origins.items():
        words = (f"{label} {text}" for label, text in provenance.describe(origin).items())
        yield Finding(provenance.name_network(phase, origin), "; ".join(words))
    for warning in provenance.list_warnings(origins, config.mpp):
        yield Finding("networks", warning, WARNING)


def _measure_tissue(
    config: ml_collections.ConfigDict, view: View
) -> Generator[Finding, None, Tissue]:
    """Finds the tissue of the slide, and returns it."""
    file = SlideFile(view.slide.path, view.slide.name, None)
    mask_file = find_mask_file(config.tissue.source, file)
    start = time.monotonic()
    overview, factor = view.read_overview(result_files.OVERVIEW)
    tissue, note = find_tissue(config, view, overview, factor, mask_file)
    share = tissue.count_pixels() / (view.width * view.height)
    if note:
        yield Finding("tissue", note, NOTE)
    yield Finding("tissue", f"{share:.1%} of the slide, in {time.monotonic() - start:.1f} s")
    return tissue


def _measure_time(config: ml_collections.ConfigDict, tiles: int, windows: int) -> str:
    """Predicts a batch, and says how long all tiles and all windows of the gate take."""
    loaded = networks.load(config)
    batch = np.full((config.batch_size, config.tile, config.tile, 3), 255, np.uint8)

    def time_batch(predict: Callable[[np.ndarray], Any]) -> float:
        np.asarray(predict(batch))  # compiles
        start = time.monotonic()
        np.asarray(predict(batch))
        return (time.monotonic() - start) / config.batch_size

    if shared := loaded.gate:
        presence = np.asarray(shared.classify(batch))
        seconds = time_batch(lambda images: shared.segment(images, presence)) * tiles
        seconds += time_batch(shared.classify) * windows
    else:
        seconds = time_batch(loaded.predict) * tiles
    duration = f"{format_two_digits(seconds)} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    gate = "" if config.phase1 else "; without the gate, of which --config.phase1 is the network"
    rate = format_two_digits(tiles / seconds)
    return f"about {duration} at {rate} tiles/s on this machine{gate}"


def _estimate_bytes(tiling: Tiling, view: View, classes: int) -> int:
    """Estimates the memory without networks: it grows with the width up to that of a strip."""
    columns = min(view.width, parts.STRIP)
    sums = tiling.tile * columns * (classes + 1) * 4
    part = parts.ROWS * columns * 4
    values = 3 * (stitching.READERS + 2) + 4 * 2 * classes  # bytes per pixel of a tile
    batches = tiling.batch_size * tiling.tile**2 * values
    row_of_parts = 2 * parts.ROWS * view.width
    return _CACHES + _OVERVIEW_BYTES + sums + part + batches + row_of_parts
