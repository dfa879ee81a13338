"""Maps a slide with tiatoolbox; run by `slide_peers`, in the environment of tiatoolbox.

Imports nothing of this project. Prints seconds, tiles and the peak of resident memory as JSON.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiatoolbox.models.engine.io_config import IOSegmentorConfig
from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
from tiatoolbox.models.models_abc import ModelABC


class Segmenter(ModelABC):
    """A network saved by `slide_peers`, in the form that tiatoolbox expects."""

    def __init__(self, path: Path):
        super().__init__()
        self.network = torch.jit.load(path).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes probabilities (B, H, W, C) of images (B, H, W, 3), uint8."""
        return self.network(images)

    @staticmethod
    def postproc(image: np.ndarray) -> np.ndarray:
        """Takes the class with the largest mean probability."""
        return np.argmax(image, axis=-1)

    @staticmethod
    def infer_batch(model: torch.nn.Module, batch_data: Any, *, device: str) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.as_tensor(batch_data).to(device)).cpu().numpy()


def map_slide(args: argparse.Namespace) -> dict[str, float]:
    """Maps a slide into `args.out`, all of it as tissue."""
    torch.set_num_threads(args.threads)
    resolution = [{"units": "mpp", "resolution": args.mpp}]
    shape = (args.tile, args.tile)
    settings = IOSegmentorConfig(
        input_resolutions=resolution,
        output_resolutions=resolution,
        patch_input_shape=shape,
        patch_output_shape=shape,
        stride_shape=(args.stride, args.stride),
        save_resolution=resolution[0],
    )
    engine = SemanticSegmentor(
        Segmenter(args.network), args.batch, num_workers=args.workers, verbose=False
    )
    start = time.perf_counter()
    engine.run(
        images=[args.slide],
        ioconfig=settings,
        patch_mode=False,
        auto_get_mask=False,
        output_type=args.files,
        save_dir=args.out,
        overwrite=True,
    )
    seconds = time.perf_counter() - start
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    return {"s": seconds, "tiles": len(engine.output_locations), "bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("network", "slide", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--files", choices=("zarr", "qupath"), required=True)
    for name in ("tile", "stride", "batch", "workers", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--mpp", type=float, required=True)
    print(json.dumps(map_slide(parser.parse_args())))


if __name__ == "__main__":
    main()
