"""A labeling of six drawn patches."""

import numpy as np
import pytest

from data import patch_files, synthetic
from tests.web.labeling_in_process import Server


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for number in range(6):
        image, _ = synthetic.draw_patch(rng, 32)
        name = f"p{number} <b>&.png" if number == 0 else f"p{number}.png"
        (folder / "patches").mkdir(parents=True, exist_ok=True)
        patch_files.write_image(folder / "patches" / name, image)
    return folder


@pytest.fixture
def server(root):
    server = Server(root)
    yield server
    server.close()
