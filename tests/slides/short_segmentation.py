"""Run by `test_interruptions.py`: segments a slide in processes that are killed.

All but the networks is the code of the job. Everything is imported before the first child is
forked, so that a child only has to work.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from configs import base_slides
from data.synthetic import DATASET
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping.networks import Networks
from wsss_jax.slides.reading.catalog import SlideFile


def predict(images: np.ndarray) -> np.ndarray:
    """Predicts four classes by color; every pixel depends on the whole tile."""
    color = np.concatenate([images, images.mean(axis=-1, keepdims=True)], axis=-1) / 64
    scores = np.exp(color - color.mean(axis=(1, 2), keepdims=True))
    return (scores / scores.sum(axis=-1, keepdims=True)).astype(np.float32)


def segment(slide: Path, folder: Path) -> None:
    """Segments a slide into a map of about five parts."""
    config = base_slides.segment(str(slide), "", "unused")
    config.mpp, config.tile, config.stride, config.batch_size = 0.5, 64, 32, 8
    config.preview.min_tiles, config.preview.seconds = 100, 0.1
    networks = Networks(predict, {"phase2": "by color"})
    file = SlideFile(slide, "slide", None)
    done = tissue_map.segment_slide(config, DATASET, networks, file, folder, show_progress=False)
    print(done, flush=True)


def start(slide: Path, folder: Path) -> int:
    """Segments in a forked child, which writes `<folder>.log`; returns its process number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        segment(slide, folder)
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
    while times:
        workdir, status = folder / f"killed{runs}", None
        runs += 1
        while status != 0:
            child = start(slide, workdir)
            if times:
                time.sleep(moments.uniform(0, duration))
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status not in (0, -signal.SIGKILL):
                sys.exit(f"{workdir}: {status}: {workdir.with_suffix('.log').read_text()}")
            times -= times > 0 and status != 0


if __name__ == "__main__":
    main()
