"""A drawn slide, and the folder of its patches."""

import pytest

from tests.sampling.short_sample import draw_slide, make_config, write_slide
from wsss_jax import jobs


@pytest.fixture(scope="session")
def slide(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slides") / "a.svs", draw_slide())


@pytest.fixture(scope="session")
def sampled(slide, tmp_path_factory):
    """The folder of a sampled slide."""
    out = tmp_path_factory.mktemp("sampled") / "mine"
    jobs.run(make_config(slide, out), out)
    return out
