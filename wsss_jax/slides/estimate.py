"""What a slide is and what segmenting it would take, for the job "doctor"."""

import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np

from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.findings import Finding
from wsss_jax.slides import settings
from wsss_jax.slides.mapping import memory, networks, parts, provenance, stitching, tissue_search
from wsss_jax.slides.outputs import outputs
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.reading import Slide, View, check_mpp, open_slide
from wsss_jax.wording import two_digits

_PATCH = 224  # pixels, where no run says
_CACHES = 2 * 128 << 20  # bytes, of decoded tiles and of resampled blocks
_OVERVIEW = 100 << 20  # bytes, of the overview and what finds tissue on it


def examine(config: ml_collections.ConfigDict) -> Iterator[Finding]:
    """What the slide `config.slide` is, and what segmenting it would take.

    Args:
      config: of the job "doctor".

    Yields:
      findings, the first problem last.
    """
    path = Path(config.slide)
    try:
        with open_slide(path, config.slide_mpp or None) as slide:
            yield from _description(slide)
            check_mpp(slide)
            yield from _plan(config, slide)
    except InputError as error:
        yield Finding("slide", " ".join(str(error).split()), True)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (short := memory.shortage(error)):
            raise
        yield Finding("memory", short, True)


def _description(slide: Slide) -> Iterator[Finding]:
    yield Finding("format", slide.vendor)
    sizes = (f"{level.width} x {level.height}" for level in slide.levels)
    yield Finding("levels", f"{len(slide.levels)}: {', '.join(sizes)} pixels")
    if slide.bounds != (0, 0, slide.width, slide.height):
        x, y, width, height = slide.bounds
        yield Finding("scanned", f"{width} x {height} pixels from ({x}, {y})")
    if slide.objective_power is not None:
        yield Finding("objective", f"{slide.objective_power:g}x")
    if slide.mpp is not None:
        source = "metadata" if slide.mpp == slide.metadata_mpp else "config.slide_mpp"
        across, down = slide.mpp_xy
        size = f"{slide.mpp:g}" if across == down else f"{across:g} x {down:g}"
        yield Finding("mpp", f"{size} micrometers per pixel of level 0, by {source}")
        for warning in slide.warnings:
            yield Finding("note", warning)


def _plan(config: ml_collections.ConfigDict, slide: Slide) -> Iterator[Finding]:
    classes = None
    if config.phase2:
        config, dataset = settings.complete(config)
        classes = dataset.num_classes
        yield from _networks(config)
    else:
        tile = config.tile or _PATCH
        stride = config.stride or settings.usual_stride(tile)
        config = config_lib.replace(config, tile=tile, stride=stride)
    if not config.mpp:
        text = "unknown: set --config.mpp=1.0 (10x), 0.5 (20x) or 0.25 (40x), or --config.phase2"
        yield Finding("networks' mpp", text, True)
        return
    view = View(slide, config.mpp, config.resampling)
    if view.warning:
        yield Finding("note", view.warning)
    size = f"{view.width} x {view.height} pixels at {view.mpp:g} micrometers per pixel"
    yield Finding("map", size)
    file = SlideFile(slide.path, slide.name, None)
    mask_file = tissue_search.mask_file_of(config.tissue.source, file)
    begun = time.monotonic()
    overview, factor = view.overview(outputs.OVERVIEW)
    tissue, note = tissue_search.find_tissue(config, view, overview, factor, mask_file)
    share = tissue.area() / (view.width * view.height)
    if note:
        yield Finding("note", note)
    yield Finding("tissue", f"{share:.1%} of the slide, in {time.monotonic() - begun:.1f} s")
    tiles = stitching.plan(
        view.width,
        view.height,
        tissue,
        tile=config.tile,
        stride=config.stride,
        batch_size=config.batch_size,
    )
    yield Finding("tiles", f"{tiles:,} of {config.tile} pixels, every {config.stride} pixels")
    memory = _memory(config, view, classes or 4) / 2**30
    yield Finding("memory", f"about {memory:.1f} GiB, and what JAX and the networks take")
    if classes is None:
        yield Finding("time", "unknown: give --config.phase1 and --config.phase2 to measure")
        return
    predict = networks.load(config).predict
    batch = np.full((config.batch_size, config.tile, config.tile, 3), 255, np.uint8)
    np.asarray(predict(batch))  # compiles
    begun = time.monotonic()
    np.asarray(predict(batch))
    seconds = (time.monotonic() - begun) / config.batch_size * tiles
    duration = f"{two_digits(seconds)} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    yield Finding(
        "time", f"about {duration} at {two_digits(tiles / seconds)} tiles/s on this machine"
    )


def _networks(config: ml_collections.ConfigDict) -> Iterator[Finding]:
    """Where they come from, and what speaks against them."""
    origins = provenance.read(config)
    for phase, origin in origins.items():
        words = (f"{label} {text}" for label, text in provenance.describe(origin).items())
        yield Finding(provenance.PHASES[phase].lower(), "; ".join(words))
    for warning in provenance.warnings(origins, config.mpp):
        yield Finding("warning", warning)


def _memory(config: ml_collections.ConfigDict, view: View, classes: int) -> int:
    """Bytes at the most, but for the networks: they grow with a strip's width, then no more."""
    columns = min(view.width, parts.STRIP)
    sums = config.tile * columns * (classes + 1) * 4
    part = parts.ROWS * columns * 4
    tile = config.tile**2
    batches = config.batch_size * tile * (3 * (stitching.READERS + 2) + 4 * 2 * classes)
    row_of_parts = 2 * parts.ROWS * view.width
    return _CACHES + _OVERVIEW + sums + part + batches + row_of_parts
