"""Speed and memory of segmenting slides, on slides that are generated.

    python -m benchmarks.slides --sides 20000 60000 --tissue=4000 --network=tiny

Each slide is a square of glass with a square of tissue in the middle, at the working resolution,
and is segmented in a process of its own, whose peak of resident memory is measured. A process that
only loads the network and computes two batches gives the network's share.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from configs import base
from data.dataset import load_dataset
from tests.slides.made_slides import TILE, TileAt, drawn_tissue, write_pyramid
from wsss_jax.methods import phase2
from wsss_jax.methods.gate import Gate
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.training.trained import Trained

MPP = 0.5  # of the slides, and working resolution
SLIDES = Path("runs/benchmarks/slides")  # kept, since writing them takes minutes


def tiles_with_tissue(side: int, tissue: int) -> TileAt:
    """`tile_at` of glass with a square of tissue of `tissue` pixels in the middle."""
    glass = np.full((TILE, TILE, 3), 244, np.uint8)
    first = (side - tissue) // 2
    drawn = drawn_tissue(side * 100, side * 100)  # so large that all of it is section

    def tile_at(x: int, y: int) -> np.ndarray:
        rows, columns = (
            (np.arange(at, at + TILE) >= first) & (np.arange(at, at + TILE) < first + tissue)
            for at in (y, x)
        )
        inside = rows[:, None] & columns
        if not inside.any():
            return glass
        return np.where(inside[..., None], drawn(x + side * 50, y + side * 50), glass)

    return tile_at


def network(kind: str) -> Trained:
    """Phase 2 with random weights: as the paper has it, or one that costs next to nothing."""
    config = base.phase2("unused")
    if kind == "tiny":
        config.model.width, config.model.blocks = 1 / 16, (1, 1, 1, 1)
    dataset = load_dataset("bcss_wsss", "")
    model = phase2.build_network(config, dataset.num_classes)
    image = np.zeros((1, 64, 64, 3), np.float32)
    init = jax.jit(partial(model.init, train=False))
    variables = init(jax.random.key(0, impl="rbg"), image)
    return Trained(config, dataset, model, variables)


def case(args: argparse.Namespace, side: int) -> dict[str, Any]:
    """Segments a slide, 0 for none; runs in a process of its own."""
    config = base.segment("unused", "", "unused")
    config.gate.mode, config.mpp, config.batch_size = "off", MPP, args.batch
    config.tile, config.stride = args.tile, args.stride
    if not args.tissue:
        config.tissue.source = "off"
    trained = network(args.network)
    loaded = networks.build({"phase2": trained}, Gate.of(config.gate))
    batch = np.full((args.batch, args.tile, args.tile, 3), 128, np.uint8)
    per_batch = measure.time_fastest(lambda: np.asarray(loaded.predict(batch)), 2)
    result = {"s/batch": per_batch}
    if side:
        file = SlideFile(_path(side, args.tissue), str(side), None)
        with tempfile.TemporaryDirectory(dir=SLIDES) as folder:
            start = time.perf_counter()
            tissue_map.segment_slide(config, trained.dataset, loaded, file, Path(folder) / "map")
            result["s"] = time.perf_counter() - start
            summary = results.read_summary(Path(folder) / "map")
        result |= {"tiles": summary["tiles"], "s for tiles": summary["seconds"]["tiles"]}
    return result | {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _path(side: int, tissue: int) -> Path:
    return SLIDES / f"{side}_{tissue or side}.svs"


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every side."""
    SLIDES.mkdir(parents=True, exist_ok=True)

    def child(side: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.slides", *sys.argv[1:], f"--case={side}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    alone = child(0)
    rows = []
    for side in args.sides:
        path = _path(side, args.tissue)
        if not path.is_file():
            tile_at = tiles_with_tissue(side, args.tissue or side)
            write_pyramid(path, side, side, tile_at, MPP, levels=(1, 4, 16))
        found = child(side)
        in_network = found["tiles"] / args.batch * found["s/batch"]
        rows.append(
            {
                "side": side,
                "tiles": found["tiles"],
                "s": found["s"],
                "s for files": found["s"] - found["s for tiles"],
                "tiles/s": found["tiles"] / found["s for tiles"],
                "tiles/s of the network": args.batch / found["s/batch"],
                "outside the network": max(0.0, 1 - in_network / found["s"]),
                "peak MB": found["bytes"] / 1e6,
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
        print(json.dumps(case(args, args.case)))


if __name__ == "__main__":
    main()
