"""Runs that are killed or stopped at any moment end like uninterrupted ones."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data import patch_files, synthetic
from wsss_jax.checkpoints import load_variables

REPOSITORY = Path(__file__).parents[1]
# How often training is killed, and gets another signal, and each other job both: more for longer.
KILLS, OTHERS = int(os.environ.get("KILLS", "5")), int(os.environ.get("OTHER_SIGNALS", "2"))


def _disturb(which, root, folder, cache, *arguments):
    """Checks that no shared memory is left; the script itself checks processes."""
    folder.mkdir()
    shared_memory = _shared_memory()
    script = "from tests.short_run import main; main()"  # which worker processes do not import
    done = subprocess.run(
        [sys.executable, "-c", script, which, root, folder, cache, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert not _shared_memory() - shared_memory


def _shared_memory():
    """Lists blocks of shared memory by the names of Grain and multiprocessing."""
    return set(Path("/dev/shm").glob("psm_*"))


@pytest.mark.kills
def test_interrupted_runs_end_with_the_same_bits(tissue_dir, tmp_path):
    work = tmp_path / "work"
    _disturb("training", tissue_dir, work, tmp_path / "cache", str(KILLS), str(OTHERS))
    whole = {score: load_variables(work / "undisturbed", score) for score in (None, "miou")}
    history = (work / "undisturbed" / "history.json").read_text()
    logs = {}
    for name in ("SIGKILL", "SIGTERM", "SIGINT", "workers"):
        runs = [path for path in work.glob(f"{name}*") if path.is_dir()]
        assert runs
        for workdir in runs:
            assert (workdir / "history.json").read_text() == history
            for score, variables in whole.items():
                found = load_variables(workdir, score)
                jax.tree.map(np.testing.assert_array_equal, found, variables)
        logs[name] = "".join(path.with_suffix(".log").read_text() for path in runs)
    _check_failing(work)
    # Not all fell before the first checkpoint: a third of them comes after a new one.
    assert logs["SIGKILL"].count("continuing after step") >= -(-KILLS // 3)
    assert "stopped by SIGTERM after step" in logs["SIGTERM"]
    assert "stopped by SIGINT after step" in logs["SIGINT"]


def _check_failing(work):
    """Training failed in all of these, and went back to the same checkpoints."""
    history = (work / "failing" / "history.json").read_text()
    times = history.count('"reason"')
    assert (work / "failing.log").read_text().count("going back") == times > 0
    for name in ("failing_SIGKILL", "failing_SIGTERM"):
        runs = [path for path in work.glob(f"{name}*") if path.is_dir()]
        logs = [path.with_suffix(".log").read_text() for path in runs]
        assert any("continuing after" in log.partition("going back")[2] for log in logs)
        for workdir in runs:
            assert (workdir / "history.json").read_text() == history
            for score in (None, "miou"):
                whole, found = (load_variables(path, score) for path in (work / "failing", workdir))
                jax.tree.map(np.testing.assert_array_equal, found, whole)


def _contents(folder):
    """Returns the bytes that a job writes, without those that depend on place or time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".png", ".csv", ".safetensors", ".html")
        or path.name in ("split.json", "patches.json", "weights.txt")
    }


@pytest.mark.long
def test_other_interrupted_jobs_end_with_the_same_bytes(runs_dir, tissue_dir, tmp_path):
    regions, work = tmp_path / "regions", tmp_path / "work"
    for name in ("images", "masks"):
        (regions / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        image, mask = synthetic.draw_patch(rng, 96)
        patch_files.write_image(regions / "images" / f"r{number}.png", image)
        Image.fromarray(mask).save(regions / "masks" / f"r{number}.png")
    cache = jax.config.jax_compilation_cache_dir
    _disturb("others", tissue_dir, work, cache, str(max(1, OTHERS // 2)), runs_dir, regions)
    names = ("masks", "relabel", "evaluate", "prepare", "export", "convert", "cluster", "tables")
    for job in names:
        expected = _contents(work / job / "undisturbed")
        assert expected or job == "convert"
        disturbed = [path for path in (work / job).glob("SIG*") if path.is_dir()]
        assert disturbed
        for workdir in disturbed:
            assert _contents(workdir) == expected
            assert not list(workdir.rglob(".*"))
            if job == "convert":
                found = load_variables(workdir, None)
                whole = load_variables(work / job / "undisturbed", None)
                jax.tree.map(np.testing.assert_array_equal, found, whole)
        assert not list((work / job).glob(".*"))
        if job == "cluster":  # not all fell before it was at work
            logs = "".join(path.with_suffix(".log").read_text() for path in disturbed)
            assert logs.count("?patch/s") > len(disturbed)
