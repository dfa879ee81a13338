"""Speed and memory of cutting patches out of slides, and the share of it that is reading.

    python -m benchmarks.sample --slides ../shared/data/slides/cmu-1-small-region.svs

Samples a drawn slide of `--side` pixels at 0.5 micrometers (JPEG), and the slides given, as the job
does. Then, with new caches and as many threads, the overview on which tissue is found is read
alone, and the same patches are only read, only measured, and only written. "reading" is the share
of the overview and the patches in the seconds of these four.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.slides import draw_square
from configs import base_slides
from data.patch_files import write_image_quickly
from data.synthetic_slides import write_pyramid
from wsss_jax.sampling import quality, slide_sample, summaries
from wsss_jax.sampling.summaries import Folders
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View

MPP = 0.5  # of the drawn slide
SLIDES = Path("runs/benchmarks/slides")  # kept: writing them takes minutes
_BATCH = 100  # patches in memory at a time


def measure_slide(args: argparse.Namespace, path: Path, mpp: float | None) -> dict[str, Any]:
    """Samples a slide; returns a row."""
    config = base_slides.sample(str(path), "unused")
    config.count = args.patches
    file = SlideFile(path, path.stem, mpp)
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders.of(Path(folder), file.name)
        start = time.perf_counter()
        slide_sample.sample_slide(config, {}, file, folders, show_progress=False)
        everything = time.perf_counter() - start
        summary = summaries.read_summary(folders.results) or {}
    positions = sorted(summary["positions"], key=lambda corner: corner[::-1])
    seconds = measure_parts(path, mpp, config.size, positions)
    return {
        "slide": path.name,
        "patches": len(positions),
        "s": everything,
        "patches/s": len(positions) / everything,
        **{f"s {name}": value for name, value in seconds.items()},
        "reading": (seconds["overview"] + seconds["reading"]) / sum(seconds.values()),
        "peak MB": measure.read_peak_memory() / 1e6,
    }


def measure_parts(
    path: Path, mpp: float | None, size: int, positions: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Measures the seconds of the overview, and of reading, measuring and writing patches."""
    seconds = dict.fromkeys(("overview", "reading", "measuring", "writing"), 0.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(slide_sample.READERS) as pool,
        open_slide(path, mpp) as slide,
    ):
        view = View(slide, 1.0)
        seconds["overview"] = measure.time_once(lambda: view.read_overview(slide_sample.OVERVIEW))

        def read(corner: Sequence[int]) -> np.ndarray:
            return view.read_alone(corner[0], corner[1], size)

        def judge(patch: np.ndarray) -> None:
            quality.measure_patches(patch[None], view.mpp)
            quality.make_thumbnails(patch[None])

        def write(numbered: tuple[int, np.ndarray]) -> None:
            write_image_quickly(Path(folder) / f"{numbered[0]}.png", numbered[1])

        def time_all(name: str, work: Callable, items: Sequence) -> list:
            start = time.perf_counter()
            results = list(pool.map(work, items))
            seconds[name] += time.perf_counter() - start
            return results

        for start in range(0, len(positions), _BATCH):
            patches = time_all("reading", read, positions[start : start + _BATCH])
            time_all("measuring", judge, patches)
            time_all("writing", write, list(enumerate(patches)))
    return seconds


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for the drawn slide, and for each one given."""
    SLIDES.mkdir(parents=True, exist_ok=True)
    drawn = SLIDES / f"{args.side}_{args.side}.svs"
    if not drawn.is_file():
        write_pyramid(drawn, draw_square(args.side, args.side), MPP, levels=(1, 4, 16))
    slides = [(drawn, None), *((Path(path), args.slide_mpp or None) for path in args.slides)]
    return [measure_slide(args, path, mpp) for path, mpp in slides]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=20_000, help="pixels of the drawn slide")
    parser.add_argument("--slides", nargs="*", default=[], help="files of further slides")
    parser.add_argument("--slide-mpp", type=float, default=0.0, help="of these; 0: their own")
    parser.add_argument("--patches", type=int, default=800)
    args = parser.parse_args()
    measure.report("sample", vars(args), run(args))


if __name__ == "__main__":
    main()
