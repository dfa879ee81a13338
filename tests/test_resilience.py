"""Runs that are killed or terminated at any moment end as if nothing had been."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

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
    for signal in ("SIGKILL", "SIGTERM"):
        runs = [path for path in tmp_path.glob(f"{signal}*") if path.is_dir()]
        assert runs
        for workdir in runs:
            assert (workdir / "history.json").read_text() == history
            for score, variables in whole.items():
                found = load_variables(workdir, score)
                jax.tree.map(np.testing.assert_array_equal, found, variables)
        logs[signal] = "".join(path.with_suffix(".log").read_text() for path in runs)
    # Neither fell only before the first checkpoint or after the last.
    assert logs["SIGKILL"].count("going on after step") > KILLS / 4
    assert "stopped by SIGTERM after step" in logs["SIGTERM"]
