"""What several test modules share: tiny data sets and configurations that train in seconds."""

from pathlib import Path

import jax
import pytest
from absl import flags

from configs import base
from data import synthetic

SIZE = 32
COUNTS = {"train": 12, "val": 5, "test": 5}


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that train the same network compile it once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(scope="session", autouse=True)
def parsed_flags() -> None:
    """Grain's worker processes look at absl's flags."""
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def tissue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set: 12 training, 5 validation and 5 test patches of 32 pixels."""
    root = tmp_path_factory.mktemp("tissue") / "data"
    synthetic.write_dataset(root, COUNTS, SIZE, seed=3)
    return root


def tiny_phase1(root: Path):
    """A configuration of phase 1 that trains in seconds."""
    config = base.phase1("")
    config.data.root = str(root)
    config.data.patch_size = SIZE
    config.data.workers = 0
    config.model.width = 1 / 16
    config.model.batch_norm = "trained"
    config.batch_size = 4
    config.epochs = 2
    return config


def tiny_phase2(masks: str, layers: tuple[str, ...] = ("b4_3", "b5_2", "bn7")):
    """A configuration of phase 2 that trains in seconds."""
    config = base.phase2(masks)
    config.data.workers = 0
    config.layers = layers
    config.layer_weights = (1 / len(layers),) * len(layers)
    config.model.width = 1 / 16
    config.model.blocks = (1, 1, 1, 1)
    config.batch_size = 8
    config.epochs = 2
    return config
