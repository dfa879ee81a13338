"""A drawn slide, and the folder of its corrections."""

import pytest

from tests.labels.correction_tools import ORIGIN, draw_slide
from wsss_jax.labels.corrections import open_corrections


@pytest.fixture
def slide(tmp_path):
    return draw_slide(tmp_path / "slides", "a")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "corrections"


@pytest.fixture
def opened(root):
    with open_corrections(root, ORIGIN) as corrections:
        yield corrections
