"""Speed and memory of segmenting slides, on drawn slides.

    python -m benchmarks.slides --sides 20000 60000 --tissue=4000 --network=tiny

Each slide is a square of glass with a square of tissue in the middle, at the working resolution. It
is segmented in a process of its own, whose peak of resident memory is measured. A process that only
loads the network and computes two batches measures the network alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.train import init_variables
from configs import base, base_slides
from data.dataset import load_dataset
from data.synthetic_slides import TILE, Drawing, draw_section, write_pyramid
from wsss_jax.methods import phase2
from wsss_jax.methods.gate import Gate
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.training.trained import Trained

MPP = 0.5  # of the slides, and working resolution
SLIDES = Path("runs/benchmarks/slides")  # kept: writing them takes minutes


def draw_square(side: int, tissue: int) -> Drawing:
    """Draws glass with a square of tissue of `tissue` pixels in the middle."""
    glass = np.full((TILE, TILE, 3), 244, np.uint8)
    first = (side - tissue) // 2
    section = draw_section(side * 100, side * 100)  # so large that the slide is all tissue

    def draw_tile(x: int, y: int) -> np.ndarray:
        rows, columns = (
            (np.arange(at, at + TILE) >= first) & (np.arange(at, at + TILE) < first + tissue)
            for at in (y, x)
        )
        inside = rows[:, None] & columns
        if not inside.any():
            return glass
        return np.where(inside[..., None], section.draw_tile(x + side * 50, y + side * 50), glass)

    return Drawing(side, side, draw_tile)


def build_network(kind: str) -> Trained:
    """Builds phase 2 with random weights: the paper's ("deeplab"), or a "tiny" one."""
    config = base.phase2("unused")
    if kind == "tiny":
        config.model.width, config.model.blocks = 1 / 16, (1, 1, 1, 1)
    dataset = load_dataset("bcss_wsss", "")
    model = phase2.build_network(config, dataset.num_classes)
    return Trained(config, dataset, model, init_variables(model))


def measure_slide(args: argparse.Namespace, side: int) -> dict[str, Any]:
    """Segments a slide, none if `side` is 0; runs in a process of its own."""
    config = base_slides.segment("unused", "", "unused")
    config.gate.mode, config.mpp, config.batch_size = "off", MPP, args.batch
    config.tile, config.stride = args.tile, args.stride
    if not args.tissue:
        config.tissue.source = "off"
    trained = build_network(args.network)
    loaded = networks.build({"phase2": trained}, Gate.of(config.gate))
    batch = np.full((args.batch, args.tile, args.tile, 3), 128, np.uint8)
    per_batch = measure.time_fastest(lambda: np.asarray(loaded.predict(batch)), 2)
    result = {"s/batch": per_batch}
    if side:
        file = SlideFile(locate_slide(side, args.tissue), str(side), None)
        with tempfile.TemporaryDirectory(dir=SLIDES) as folder:
            start = time.perf_counter()
            tissue_map.segment_slide(config, trained.dataset, loaded, file, Path(folder) / "map")
            result["s"] = time.perf_counter() - start
            ((_, summary),) = results.list_finished(Path(folder))
        result |= {"tiles": summary["tiles"], "s for tiles": summary["seconds"]["tiles"]}
    return result | {"bytes": measure.read_peak_memory()}


def locate_slide(side: int, tissue: int) -> Path:
    return SLIDES / f"{side}_{tissue or side}.svs"


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a slide of every side; returns a row for each."""
    SLIDES.mkdir(parents=True, exist_ok=True)

    def measure_in_process(side: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.slides", *sys.argv[1:], f"--case={side}"]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(process.stdout.splitlines()[-1])

    alone = measure_in_process(0)
    rows = []
    for side in args.sides:
        path = locate_slide(side, args.tissue)
        if not path.is_file():
            write_pyramid(path, draw_square(side, args.tissue or side), MPP, levels=(1, 4, 16))
        result = measure_in_process(side)
        in_network = result["tiles"] / args.batch * result["s/batch"]
        rows.append(
            {
                "side": side,
                "tiles": result["tiles"],
                "s": result["s"],
                "s for files": result["s"] - result["s for tiles"],
                "tiles/s": result["tiles"] / result["s for tiles"],
                "tiles/s of the network": args.batch / result["s/batch"],
                "outside the network": max(0.0, 1 - in_network / result["s"]),
                "peak MB": result["bytes"] / 1e6,
                "MB of the network": alone["bytes"] / 1e6,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 10000])
    parser.add_argument("--tissue", type=int, default=0, help="pixels of its side; 0: all tissue")
    parser.add_argument("--network", choices=("tiny", "deeplab"), default="tiny")
    parser.add_argument("--tile", type=int, default=224)
    parser.add_argument("--stride", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is None:
        measure.report("slides", vars(args), run(args))
    else:
        print(json.dumps(measure_slide(args, args.case)))


if __name__ == "__main__":
    main()
