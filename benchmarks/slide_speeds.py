"""Hours for the map of a slide of common size, by what makes it faster.

    python -m benchmarks.slide_speeds --batch=20

The slide has 80,000 x 60,000 pixels of 0.25 micrometers, worked at 1.0; 30 % of it is tissue, an
ellipse. The networks have full width and random weights. Each computes batches in turn with the
others; hours follow from the tiles and the windows of the gate. What reading, stitching and files
take is measured on a drawn slide, with networks that give a constant, and is the same in each row.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import ml_collections
import numpy as np

from benchmarks import convolutions, measure, slides
from benchmarks.train import init_variables
from configs import base, base_slides
from data.dataset import load_dataset
from data.synthetic_slides import write_pyramid
from wsss_jax import parallel
from wsss_jax.methods.contract import load_method
from wsss_jax.methods.gate import Gate
from wsss_jax.models.lowering import Choice, Way
from wsss_jax.models.winograd import WINOGRAD
from wsss_jax.slides import settings, tissue_map
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.mapping.networks import Networks
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.tiling import choose_stride
from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.training.trained import Trained

DATASET = "luad_histoseg"
SIZE, TISSUE = (20_000, 15_000), 0.3  # working pixels, share of them
DRAWN = 4096  # pixels, side of the slide on which the rest is measured


class Speed(NamedTuple):
    """How the networks compute, and whether `speed` is "fast".

    `is_plain`: as version 0.3 did, without folding and with all products of 3x3 kernels.
    """

    precision: str = "float32"
    is_plain: bool = False
    is_fast: bool = False


SPEEDS = {
    "before": Speed(is_plain=True),
    "exact": Speed(),
    "bfloat16": Speed("bfloat16"),
    "fast": Speed(is_fast=True),
    "fast, bfloat16": Speed("bfloat16", is_fast=True),
}


def make_config(tile: int, batch: int) -> ml_collections.ConfigDict:
    config = base_slides.segment("unused", "unused", "unused")
    config.tile, config.stride, config.batch_size, config.mpp = (
        tile,
        choose_stride(tile),
        batch,
        1.0,
    )
    return config


def count_places(config: ml_collections.ConfigDict, speed: Speed) -> tuple[int, int]:
    """Counts the tiles of the slide, and how many windows phase 1 classifies."""
    width, height = SIZE
    mask = np.zeros((height // 10, width // 10), np.uint8)
    axes = [round(length / 10 * np.sqrt(TISSUE / np.pi)) for length in SIZE]
    cv2.ellipse(mask, (width // 20, height // 20), axes, 0, 0, 360, 1, -1)
    config = config.copy_and_resolve_references()
    factor = settings.FAST_GATE if speed.is_fast else 0
    config.gate.stride = min(factor * config.stride, config.tile)
    plan = Plan.of(Tissue(mask > 0, width, height), settings.make_tiling(config))
    return plan.count(), plan.count_windows()


def build_networks(config: ml_collections.ConfigDict, width: float, speed: Speed) -> Networks:
    """Builds both networks with random weights."""
    dataset = load_dataset(DATASET, "")
    loaded = {}
    for phase, of_run in (("phase1", base.phase1(DATASET)), ("phase2", base.phase2("unused"))):
        of_run.model.width, of_run.precision = width, speed.precision
        if speed.is_plain:
            number = 1 if phase == "phase1" else 2
            of_run.convolutions.ways = list_plain_ways(number, config.tile, width)
        model = load_method(of_run.job).build_network(of_run, dataset.num_classes)
        loaded[phase] = Trained(of_run, dataset, model, init_variables(model))
    return networks.build(loaded, Gate.of(config.gate), is_shared=True, fold=not speed.is_plain)


def list_plain_ways(phase: int, size: int, width: float) -> tuple[str, ...]:
    """Lists other ways for the shapes that Winograd's minimal filtering computes by rule."""
    platform, ways = parallel.name_platform(), []
    for shape in set(convolutions.list_shapes(phase, size, width).values()):
        if convolutions.choose_way(shape, "forward") in WINOGRAD:
            way: Way = "inside" if shape.dilation > 2 else "XLA"
            ways.append(str(Choice(platform, shape, (way,) * 3)))
    return tuple(sorted(ways))


Program = tuple[str, bool, str]  # precision, is_plain, phase


def time_networks(
    config: ml_collections.ConfigDict, width: float, repeats: int
) -> dict[Program, tuple[float, float]]:
    """Times a batch of each network: wall and processor seconds."""
    images = np.full((config.batch_size, config.tile, config.tile, 3), 128, np.uint8)
    functions: dict[Program, Callable[[], Any]] = {}
    for precision, is_plain, _ in SPEEDS.values():
        if (precision, is_plain, "phase1") in functions:
            continue
        gate = build_networks(config, width, Speed(precision, is_plain)).gate
        assert gate is not None  # as built
        presence = np.asarray(gate.classify(images))  # compiles
        np.asarray(gate.segment(images, presence))
        functions[precision, is_plain, "phase1"] = partial(_wait, gate.classify, images)
        functions[precision, is_plain, "phase2"] = partial(_wait, gate.segment, images, presence)
    times = dict.fromkeys(functions, (np.inf, np.inf))
    for _ in range(repeats):
        for key, function in functions.items():
            wall, processor = time.perf_counter(), time.process_time()
            function()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            times[key] = min(times[key][0], wall), min(times[key][1], processor)
    return times


def _wait(predict: Callable[..., Any], *arguments: np.ndarray) -> None:
    np.asarray(predict(*arguments))


def time_rest(config: ml_collections.ConfigDict, num_classes: int) -> tuple[float, float]:
    """Times all but the networks for a tile: wall and processor seconds."""
    path = slides.SLIDES / f"{DRAWN}_1.svs"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pyramid(path, slides.draw_square(DRAWN, DRAWN), 1.0, levels=(1, 4))
    config = config.copy_and_resolve_references()
    config.phase1, config.tissue.source = "", "off"
    shape = (config.batch_size, config.tile, config.tile, num_classes)
    constant = np.random.default_rng(0).dirichlet(np.ones(num_classes), shape[:-1])
    constant = np.repeat(constant[:, ::16, ::16], 16, axis=1).repeat(16, axis=2).astype(np.float32)
    still = Networks(lambda images: constant[:, : shape[1], : shape[2]], {})
    with tempfile.TemporaryDirectory(dir=slides.SLIDES) as folder:
        wall, processor = time.perf_counter(), time.process_time()
        file = SlideFile(path, "drawn", None)
        tissue_map.segment_slide(
            config, load_dataset(DATASET, ""), still, file, Path(folder) / "map"
        )
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        ((_, summary),) = results.list_finished(Path(folder))
    return wall / summary["tiles"], processor / summary["tiles"]


def run(size: int, width: float, batch: int, repeats: int) -> list[dict[str, Any]]:
    config = make_config(size, batch)
    rest = time_rest(config, load_dataset(DATASET, "").num_classes)
    times = time_networks(config, width, repeats)
    rows: list[dict[str, Any]] = []
    for name, speed in SPEEDS.items():
        tiles, windows = count_places(config, speed)
        precision, is_plain, _ = speed
        first, second = (times[precision, is_plain, phase] for phase in ("phase1", "phase2"))
        in_networks = [(a * (windows or tiles) + b * tiles) / batch for a, b in zip(first, second)]
        wall, processor = (n + r * tiles for n, r in zip(in_networks, rest))
        rows.append(
            {
                "speed": name,
                "tiles": tiles,
                "windows": windows or tiles,
                "tiles/s": tiles / wall,
                "hours": wall / 3600,
                "processor hours": processor / 3600,
                "times faster": rows[0]["processor hours"] / (processor / 3600) if rows else 1.0,
                "outside the networks": 1 - in_networks[1] / processor,
            }
        )
    return rows


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=20, help="tiles")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    measure.report("slide_speeds", vars(args), run(args.size, args.width, args.batch, args.repeats))


if __name__ == "__main__":
    main()
