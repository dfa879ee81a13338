"""Slides that several test modules read."""

from pathlib import Path

import numpy as np
import pytest

from data.synthetic_slides import draw_waves, wrap_array, write_pyramid
from tests.slides.slide_runs import make_config, write_slide
from wsss_jax import jobs

WIDTH, HEIGHT = 1111, 903


@pytest.fixture(scope="session")
def waves() -> np.ndarray:
    """The image of the slides in `slides_dir`."""
    return draw_waves(WIDTH, HEIGHT)


@pytest.fixture(scope="session")
def slides_dir(tmp_path_factory: pytest.TempPathFactory, waves: np.ndarray) -> Path:
    """One lossless slide of each style, of odd size, with mpp 0.5."""
    root = tmp_path_factory.mktemp("slides")
    for style, name in (("aperio", "a.svs"), ("generic", "g.tif"), ("ome", "o.ome.tif")):
        write_pyramid(root / name, wrap_array(waves), 0.5, (1, 2, 4), style, "deflate")
    return root


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "a slide.svs")


@pytest.fixture(scope="session")
def finished(slide: Path, runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a segmented slide, with all files that can be asked for."""
    workdir = tmp_path_factory.mktemp("finished") / "maps"
    config = make_config(slide, runs_dir)
    config.probabilities = True
    jobs.run(config, workdir)
    return workdir
