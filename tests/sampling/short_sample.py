"""A drawn slide with sharp tissue, and the job "sample" on it.

Run by `test_sample_interruptions.py`: samples a slide in processes that are killed. Everything is
imported before the first child is forked, so that a child only has to work.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import cv2
import ml_collections
import numpy as np

from configs import base_slides
from data.synthetic_slides import Drawing, wrap_array, write_pyramid
from wsss_jax import config as config_lib
from wsss_jax.sampling import slide_sample, tables
from wsss_jax.sampling.summaries import Folders
from wsss_jax.slides.reading.catalog import SlideFile

SIZE = 1024, 768  # of the slide at level 0, pixels
MPP = 0.5  # at level 0
PATCH = 64  # pixels at 1 micrometer


def draw_slide(seed: int = 0) -> np.ndarray:
    """Draws sharp tissue with nuclei on glass: an oval over most of the slide."""
    width, height = SIZE
    rng = np.random.default_rng(seed)
    fibers = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 1.0)
    image = np.array([222, 160, 198]) + 60 * fibers[..., None]
    for x, y in rng.integers((0, 0), SIZE, (2500, 2)):
        cv2.circle(image, (int(x), int(y)), 5, (96, 60, 132), -1)
    rows, columns = np.mgrid[:height, :width]
    outside = (columns / width - 0.5) ** 2 / 0.22 + (rows / height - 0.5) ** 2 / 0.2 > 1
    image[outside] = 244
    return image.clip(0, 255).astype(np.uint8)


def write_slide(path: Path, image: np.ndarray, mpp: float | None = MPP) -> Path:
    """Writes a lossless slide."""
    drawing: Drawing = wrap_array(image)
    write_pyramid(path, drawing, mpp, levels=(1, 2, 4), compression="deflate")
    return path


def make_config(slides: Path | str, out: Path, **fields: object) -> ml_collections.ConfigDict:
    config = base_slides.sample(str(slides), str(out))
    config.size, config.count = PATCH, 24
    config.tissue.closing, config.tissue.min_tissue, config.tissue.min_hole = 8.0, 500.0, 500.0
    config.update_from_flattened_dict(fields)
    config_lib.validate(config)
    return config


def read_rows(out: Path) -> dict[str, tables.PatchRow]:
    """The rows of `patches.csv`, by the name of the patch."""
    return {Path(row.patch).stem: row for row in tables.read_patches(out / tables.PATCHES)}


def list_files(out: Path) -> dict[str, bytes]:
    """All files by path, but the configuration, which names the command's fields."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "config.json"
    }


def start(slide: Path, out: Path) -> int:
    """Samples in a forked child, which writes `<out>.log`; returns its process number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        file, folders = SlideFile(slide, slide.stem, None), Folders.of(out, slide.stem)
        config = make_config(slide, out, count=60, max_overlap=0.5)
        slide_sample.sample_slide(config, {}, file, folders, show_progress=False)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(status)


def main() -> None:
    slide, folder, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    begun = time.monotonic()
    if os.waitpid(start(slide, folder / "undisturbed"), 0)[1]:
        sys.exit((folder / "undisturbed.log").read_text())
    duration = time.monotonic() - begun
    moments, runs = random.Random(0), 0
    while times > 0:
        out, status = folder / f"killed{runs}", None
        runs += 1
        while status != 0:
            child = start(slide, out)
            if times > 0:
                time.sleep(moments.uniform(0, duration))
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status not in (0, -signal.SIGKILL):
                sys.exit(f"{out}: {status}: {out.with_suffix('.log').read_text()}")
            times -= status != 0


if __name__ == "__main__":
    main()
