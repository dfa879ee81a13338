from pathlib import Path

import pytest

from tests.slides.slide_runs import make_config, write_slide
from wsss_jax import jobs


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
