"""Runs that are killed or terminated at any moment end as if nothing had been."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from wsss_jax import config as config_lib
from wsss_jax import jobs, pseudo_masks
from wsss_jax.checkpoints import load_variables

REPOSITORY = Path(__file__).parents[1]
KILLS, TERMINATIONS = 30, 5


def test_disturbed_runs_end_bit_for_bit_as_an_undisturbed_one(tissue_dir, tmp_path):
    arguments = [tissue_dir, tmp_path, tmp_path / "cache", str(KILLS), str(TERMINATIONS)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.short_run", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    whole = {score: load_variables(tmp_path / "undisturbed", score) for score in (None, "miou")}
    history = (tmp_path / "undisturbed" / "history.json").read_text()
    logs = {}
    for name in ("SIGKILL", "SIGTERM"):
        runs = [path for path in tmp_path.glob(f"{name}*") if path.is_dir()]
        assert runs
        for workdir in runs:
            assert (workdir / "history.json").read_text() == history
            for score, variables in whole.items():
                found = load_variables(workdir, score)
                jax.tree.map(np.testing.assert_array_equal, found, variables)
        logs[name] = "".join(path.with_suffix(".log").read_text() for path in runs)
    # Neither fell only before the first checkpoint or after the last.
    assert logs["SIGKILL"].count("going on after step") > KILLS / 4
    assert "stopped by SIGTERM after step" in logs["SIGTERM"]


def test_masks_killed_while_they_are_written(runs_dir, tmp_path):
    workdir, whole = tmp_path / "masks", runs_dir / "masks"
    written = pseudo_masks.layer_dir(workdir, "bn7")
    arguments = [
        "--config=configs/luad_masks.py",
        f"--config.phase1={runs_dir / 'phase1'}",
        "--config.data.workers=0",
        "--config.batch_size=1",
        "--config.sheet_patches=2",
        f"--workdir={workdir}",
    ]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "main.py", *arguments], cwd=REPOSITORY, stdout=log, stderr=log
        )
        while child.poll() is None and not list(written.glob("*.png")):
            time.sleep(0.001)
        child.kill()
    assert child.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    jobs.make_masks(config_lib.load(workdir, "workdir"), workdir)
    for path in whole.rglob("PM_*/*.png"):
        assert (workdir / path.relative_to(whole)).read_bytes() == path.read_bytes()
    names = {path.name for path in pseudo_masks.layer_dir(workdir, "bn7").iterdir()}
    assert names == {path.name for path in pseudo_masks.layer_dir(whole, "bn7").iterdir()}
