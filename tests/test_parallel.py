import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax import parallel
from wsss_jax.errors import InputError

REPOSITORY = Path(__file__).parents[1]


def _train_on(devices: int, arguments: list[Path]) -> dict[str, np.ndarray]:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": str(2 * devices),  # fewer threads dead-lock the collectives
        "PYTHONPATH": str(REPOSITORY),
    }
    script = REPOSITORY / "tests" / "two_counts.py"
    subprocess.run([sys.executable, script, *arguments], env=environment, check=True)
    with np.load(arguments[-1]) as results:
        return dict(results)


def test_eight_devices_train_what_one_trains(tissue_dir, tmp_path):
    """Both phases, dropout, flips and blur on, with a last batch that leaves devices empty."""
    masks = tmp_path / "masks"
    masks.mkdir()
    rng = np.random.default_rng(0)
    for path in (tissue_dir / "train").glob("*.png"):
        mask = rng.integers(0, 5, (4, 4), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(mask).save(masks / path.name)
    one, eight = (
        _train_on(devices, [tissue_dir, masks, tmp_path / f"{devices}.npz"]) for devices in (1, 8)
    )
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    assert one.keys() == eight.keys()
    for phase in ("phase1", "phase2"):
        np.testing.assert_allclose(eight[f"{phase}/loss"], one[f"{phase}/loss"], rtol=1e-5)
        np.testing.assert_allclose(eight[f"{phase}/acc"], one[f"{phase}/acc"], atol=2e-3)
    for name in (name for name in one if "/after/" in name):
        before = one[name.replace("/after/", "/before/")]
        np.testing.assert_array_equal(eight[name.replace("/after/", "/before/")], before)
        # As far as it moved, up to 1 %, and up to float32's resolution of what moved.
        moved, magnitude = np.abs(one[name] - before).max(), np.abs(one[name]).max()
        assert moved > 0, name
        tolerance = 0.01 * moved + 4 * np.finfo(np.float32).eps * magnitude
        np.testing.assert_allclose(eight[name], one[name], rtol=0, atol=tolerance, err_msg=name)


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(parallel.jax, "local_device_count", lambda: 8)
    parallel.check_batch_size(16)
    with pytest.raises(InputError, match=r"20, which 8 devices .*--config\.batch_size=16"):
        parallel.check_batch_size(20)


def test_map_batch_keeps_the_order():
    batch = {"x": np.arange(6, dtype=np.float32)}
    out = parallel.map_batch(lambda scale, batch: batch["x"] * scale)(np.float32(2), batch)
    np.testing.assert_array_equal(out, 2 * batch["x"])
