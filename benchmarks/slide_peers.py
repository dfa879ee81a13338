"""Maps of a slide beside tiatoolbox, with the same network, tiles and slide.

    python -m benchmarks.slide_peers --tiatoolbox=<its environment>/bin/python --network=deeplab

tiatoolbox needs other versions of packages, so it works in an environment of its own:
`python3.11 -m venv <folder>; <folder>/bin/pip install tiatoolbox==2.1.3`. Both compute on the CPU.
The network, phase 2 with random weights, goes there as TorchScript (`make torch`). Each map is made
in a process of its own, without a gate; all of the slide counts as tissue. Beside the label map
alone (a Zarr array in tiatoolbox) the same with polygons is measured (its GeoJSON for QuPath; all
our files, of which that is one).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from benchmarks import measure, slides
from configs import base_slides
from data.synthetic_slides import write_pyramid
from wsss_jax.interop import torch_names
from wsss_jax.methods.gate import Gate
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import results
from wsss_jax.slides.outputs.result_files import LABEL_MAP
from wsss_jax.slides.reading.catalog import SlideFile

SCRIPT = Path(__file__).with_name("run_tiatoolbox.py")


def save_torchscript(args: argparse.Namespace, path: Path) -> None:
    """Saves the network: images (B, H, W, 3) uint8 -> probabilities (B, H, W, C) float32."""
    import torch

    from wsss_jax.parity.torch_networks import DeepLabV3Plus

    trained = slides.build_network(args.network)
    model = trained.config.model
    network = DeepLabV3Plus(trained.dataset.num_classes, model.width, model.blocks)
    arrays = torch_names.to_torch(trained.variables)
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})

    mean, std = (torch.tensor(model[name])[:, None, None] for name in ("mean", "std"))

    class Probabilities(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scaled = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
            logits, _ = self.network(scaled)
            return logits.softmax(1).permute(0, 2, 3, 1).contiguous()

    example = torch.zeros((args.batch, args.tile, args.tile, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.jit.trace(Probabilities().eval(), example).save(path)


def map_slide(args: argparse.Namespace) -> dict[str, float]:
    """Maps the slide into `args.case` with all files; runs in a process of its own."""
    config = base_slides.segment("unused", "", "unused")
    config.gate.mode, config.mpp, config.batch_size = "off", slides.MPP, args.batch
    config.tile, config.stride, config.tissue.source = args.tile, args.stride, "off"
    trained = slides.build_network(args.network)
    start = time.perf_counter()
    loaded = networks.build({"phase2": trained}, Gate.of(config.gate))
    file = SlideFile(slides.locate_slide(args.side, 0), "slide", None)
    tissue_map.segment_slide(config, trained.dataset, loaded, file, args.case / "map")
    seconds = time.perf_counter() - start
    ((_, summary),) = results.list_finished(args.case)
    return {
        "s": seconds,
        "s for tiles": summary["seconds"]["tiles"],
        "tiles": summary["tiles"],
        "bytes": measure.read_peak_memory(),
    }


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures both; returns a row for each."""
    slide = slides.locate_slide(args.side, 0)
    if not slide.is_file():
        slides.SLIDES.mkdir(parents=True, exist_ok=True)
        write_pyramid(slide, slides.draw_square(args.side, args.side), slides.MPP, levels=(1, 4))
    with tempfile.TemporaryDirectory(dir=slides.SLIDES) as folder:
        out = Path(folder)
        save_torchscript(args, out / "network.pt")
        ours = _measure([sys.executable, "-m", "benchmarks.slide_peers", *sys.argv[1:]], case=out)
        fields = {name: getattr(args, name) for name in ("tile", "stride", "batch", "workers")}
        fields |= {"network": out / "network.pt", "slide": slide, "mpp": slides.MPP}
        fields["threads"] = os.cpu_count()
        alone, with_polygons = (
            _measure([args.tiatoolbox, "-P", SCRIPT], **fields, files=files, out=out / files)
            for files in ("zarr", "qupath")
        )
        equal = compare(out / "map" / LABEL_MAP, next(out.glob("zarr/*.zarr")), args.tile)
    rows = [
        {"": "ours", **ours},
        {"": "tiatoolbox", **with_polygons, "s for tiles": alone["s"]},
    ]
    return [
        {
            "": row[""],
            "tiles": row["tiles"],
            "s, map": row["s for tiles"],
            "tiles/s, map": row["tiles"] / row["s for tiles"],
            "s, with polygons": row["s"],
            "tiles/s, with polygons": row["tiles"] / row["s"],
            "peak MB": row["bytes"] / 1e6,
            "equal": equal,
        }
        for row in rows
    ]


def compare(ours: Path, theirs: Path, margin: int) -> float:
    """Returns the share of pixels with the same class in both label maps.

    Without the last `margin` rows and columns: there our last tiles move back into the slide, those
    of tiatoolbox reach over its edge.
    """
    import zarr  # comes with PyTorch by `make torch`, as a requirement of tests

    labels = tifffile.imread(ours)
    height, width = (side - margin for side in labels.shape)
    classes = np.asarray(zarr.open_group(theirs, mode="r")["predictions"])
    return float((labels[:height, :width] == classes[:height, :width]).mean())


def _measure(command: list[Any], **fields: Any) -> dict[str, Any]:
    options = [f"--{name}={value}" for name, value in fields.items()]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiatoolbox", required=True, help="Python of its environment")
    parser.add_argument("--network", choices=("tiny", "deeplab"), default="tiny")
    parser.add_argument("--side", type=int, default=4096, help="pixels, of the slide")
    parser.add_argument("--tile", type=int, default=224)
    parser.add_argument("--stride", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0, help="that read for tiatoolbox")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if shutil.which(args.tiatoolbox) is None:
        parser.error(f"--tiatoolbox={args.tiatoolbox}: no such program; see the top of this file")
    if not measure.use_torch(True):
        parser.exit(2)
    if args.case is None:
        measure.report("slide_peers", vars(args), run(args))
    else:
        print(json.dumps(map_slide(args)))


if __name__ == "__main__":
    main()
