"""Slides shared out over a Ray cluster of two nodes, which the test starts, as a user does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.synthetic_slides import Drawing, draw_section, write_pyramid

pytestmark = pytest.mark.long
ray_cluster = pytest.importorskip("ray.cluster_utils")

REPOSITORY = Path(__file__).parents[2]
INPUT_ERROR = 2  # exit code
OF_THE_START = ("config.json", "slide.json", "report.html")  # name the engine, or the time it took


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """A folder with two slides of different tissue, and one that is no slide."""
    folder = tmp_path_factory.mktemp("slides")
    section = draw_section(640, 512)
    upside_down = Drawing(640, 512, lambda x, y: section.draw_tile(x, y)[::-1])
    write_pyramid(folder / "a.svs", section, 0.5)
    write_pyramid(folder / "b.svs", upside_down, 0.5)
    (folder / "damaged.svs").write_bytes((folder / "a.svs").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster whose two nodes have room for one worker each."""
    cluster = ray_cluster.Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=4, num_gpus=0, object_store_memory=100_000_000)
    yield cluster.address
    cluster.shutdown()


def _segment(slides: Path, runs_dir: Path, workdir: Path, **environment: str) -> str:
    """Runs the job; returns what it printed. One slide must fail."""
    fields = {
        "slides": f"{slides}/*.svs",
        "phase1": runs_dir / "phase1",
        "phase2": runs_dir / "phase2",
        "engine": "ray" if environment else "local",
        "mpp": 1.0,
        "stride": 16,
        "batch_size": 16,
        "probabilities": True,
        "tissue.closing": 8.0,
        "tissue.min_tissue": 500.0,
        "tissue.min_hole": 500.0,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = subprocess.run(
        [
            *(sys.executable, "main.py", "--config=configs/segment_slides.py"),
            *(*flags, f"--workdir={workdir}"),
        ],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == INPUT_ERROR, done.stdout + done.stderr
    assert "1 of 3 slides failed" in done.stderr
    return done.stdout


def _sample(slides: Path, out: Path, **environment: str) -> str:
    """Runs the job that cuts patches; returns what it printed. One slide must fail."""
    fields = {
        "slides": f"{slides}/*.svs",
        "out": out,
        "engine": "ray" if environment else "local",
        "size": 64,
        "count": 12,
        "tissue.min_tissue": 500.0,
    }
    done = subprocess.run(
        [
            *(sys.executable, "main.py", "--config=configs/sample.py"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == INPUT_ERROR, done.stdout + done.stderr
    assert "1 of 3 slides failed" in done.stderr
    return done.stdout


def _get_files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_a_cluster_gives_the_same_bytes(slides, runs_dir, cluster, tmp_path):
    local, shared = tmp_path / "local", tmp_path / "ray"
    printed = _segment(slides, runs_dir, local)
    assert "3 of 3: damaged FAILED" in printed
    printed = _segment(slides, runs_dir, shared, RAY_ADDRESS=cluster)
    assert "damaged FAILED" in printed and "3 of 3: " in printed
    files = _get_files(local)
    assert files == _get_files(shared) and Path("b/probabilities.ome.tif") in files
    for path in files:
        if path.name not in OF_THE_START:
            assert (shared / path).read_bytes() == (local / path).read_bytes(), path
    for name in ("a", "b"):
        summaries = []
        for folder in (local, shared):
            summary = json.loads((folder / name / "slide.json").read_text())
            assert summary.pop("seconds")["all"] > 0 and summary["sizes"].pop("report.html") > 0
            summaries.append(summary)
        assert summaries[0] == summaries[1]
    assert not (shared / "damaged").exists()


def test_a_cluster_cuts_the_same_patches(slides, cluster, tmp_path):
    local, shared = tmp_path / "local", tmp_path / "ray"
    _sample(slides, local)
    printed = _sample(slides, shared, RAY_ADDRESS=cluster)
    assert "damaged FAILED" in printed and "3 of 3: " in printed
    files = _get_files(local)
    assert files == _get_files(shared) and len(files) > 24
    for path in files - {Path("config.json")}:
        assert (shared / path).read_bytes() == (local / path).read_bytes(), path
