"""What several test modules share: tiny data sets and configurations that train in seconds."""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from flax import linen as nn

from configs import base, base_histosegnet, base_sccam
from data import synthetic
from wsss_jax import config as config_lib
from wsss_jax import jobs

# PyTorch's threads wait in a loop: where they share the cores with another worker, steps of
# milliseconds take seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SIZE = 32
COUNTS = {"train": 12, "val": 5, "test": 5}


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A program is compiled once for all tests: those of the other worker, and of processes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose folder is one of several in the folder of all
        root = root.parent
    settings = {
        "jax_compilation_cache_dir": str(root / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # most programs are small
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


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


def tiny_histosegnet(root: Path):
    """A configuration of HistoSegNet that trains in seconds."""
    config = base_histosegnet.histosegnet("")
    config.data.root, config.data.patch_size, config.data.workers = str(root), SIZE, 0
    config.model.width, config.batch_size, config.epochs = 1 / 16, 4, 2
    return config


def tiny_sccam(root: Path | str, number: int = 0):
    """A configuration of a round of SC-CAM that trains in seconds."""
    config = base_sccam.train("", "tiny", number)
    if not number:
        config.data.root, config.data.patch_size = str(root), SIZE
    config.data.workers = 0
    config.model.width = 1 / 16
    config.batch_size, config.epochs = 4, 2
    config.stop_epoch = 0
    config.cam.scales, config.cam.flip = (1.0,), False
    return config


def draw_variables(network: nn.Module, images: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Draws variables like `network.init`, whose program takes seconds to compile."""
    init = partial(network.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            inputs = leaf.size // leaf.shape[-1]
            return (rng.standard_normal(leaf.shape) * (2 / inputs) ** 0.5).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def runs_dir(tissue_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdirs of the four jobs, run in a row; phase 2 reads the ArrayRecord store."""
    root = tmp_path_factory.mktemp("runs")
    first = tiny_phase1(tissue_dir)
    first.epochs, first.model.batch_norm = 1, "auto"
    config_lib.validate(first)
    jobs.run(first, root / "phase1")

    opening = base.masks(str(root / "phase1"))
    opening.data.workers, opening.batch_size, opening.sheet_patches = 0, 8, 2
    config_lib.validate(opening)
    jobs.run(opening, root / "masks")

    second = tiny_phase2(str(root / "masks"))
    second.epochs, second.data.source = 1, "tfds"
    config_lib.validate(second)
    jobs.run(second, root / "phase2")

    scoring = base.evaluate(str(root / "phase1"), str(root / "phase2"))
    scoring.data.workers, scoring.batch_size, scoring.sheet_patches = 0, 4, 2
    config_lib.validate(scoring)
    jobs.run(scoring, root / "evaluate")
    return root


# Groups that train, compile or wait, about the longest first: begun at the end, one worker would
# wait for the other. What is not named has short tests only.
LONGEST = (
    "runs",
    "test_resilience",
    "test_benchmarks",
    "test_cam",
    "test_clusters",
    "test_augmentation",
    "test_main",
    "test_training",
    "test_histosegnet",
    "test_noisy_mask_losses",
    "test_adjustment",
    "test_preview",
    "test_crf",
    "test_divergence",
    "test_repeat",
    "test_parallel",
    "test_sccam_training",
    "test_interruptions",
    "test_viewer_pages",
    "test_resnet38",
    "test_deeplab",
    "test_convolution",
    "test_sccam",
    "test_torch_networks",
    "test_histosegnet_torch",
    "test_sccam_torch",
    "test_golden",
    "test_phase1",
    "test_earlier_runs",
    "test_measurement",
    "test_further_patches",
    "test_inputs",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shares the tests out by module, and keeps those that need the trained runs together.

    With several workers the longest groups begin first, then those with the most tests.
    """
    groups = ["runs" if "runs_dir" in item.fixturenames else item.module.__name__ for item in items]
    for item, group in zip(items, groups):
        item.add_marker(pytest.mark.xdist_group(group))
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    tests = Counter(groups)
    order = {
        group: (0, LONGEST.index(group)) if group in LONGEST else (1, -count)
        for group, count in tests.items()
    }
    items[:] = [item for item, _ in sorted(zip(items, groups), key=lambda pair: order[pair[1]])]
