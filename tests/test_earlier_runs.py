"""Runs that earlier versions wrote load, and do every job."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.methods.gate import Gate
from wsss_jax.slides.mapping.networks import build
from wsss_jax.training.trained import load_trained

ARCHIVES = sorted((Path(__file__).parent / "earlier_runs").glob("*.tar.xz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def earlier(request, tmp_path, monkeypatch):
    """A folder with the data, the runs of three jobs and the predictions that a version wrote."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # the runs name each other by relative paths
    return tmp_path


def test_an_earlier_run_is_evaluated_as_it_was(earlier):
    config = base.evaluate("phase1", "phase2")
    config.data.workers, config.batch_size, config.sheet_patches = 0, 2, 0
    jobs.run(config, earlier / "again")
    paths = sorted((earlier / "evaluate" / "predictions").glob("*.png"))
    assert paths
    for path in paths:
        before = np.asarray(Image.open(path))
        now = np.asarray(Image.open(earlier / "again" / "predictions" / path.name))
        assert (before != now).mean() < 0.01  # ties, which other processors round otherwise


def test_an_earlier_run_opens_and_trains_further(earlier, capsys):
    opening = base.masks("phase1")
    opening.data.workers, opening.batch_size, opening.sheet_patches = 0, 4, 0
    jobs.run(opening, earlier / "opened")
    capsys.readouterr()
    for job in ("phase1", "phase2"):  # all epochs are done: the same command finds nothing to do
        again = config_lib.load(earlier / job, "workdir")
        jobs.run(again, earlier / job)
        assert "continuing after step 1 of 1" in capsys.readouterr().out


def test_slide_maps_of_earlier_runs_stay_theirs(earlier):
    """The checksums by which a map knows its networks: as computed at the commit 7052871."""
    loaded = {
        "phase1": load_trained("phase1", "phase1", "presence"),
        "phase2": load_trained("phase2", "phase2", "logits"),
    }
    networks = build(loaded, Gate("probabilities", 0.1))
    assert networks.checksums == {"phase1": "81d9cad9", "phase2": "822afc12"}
