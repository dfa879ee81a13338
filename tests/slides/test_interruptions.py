"""Slides whose segmentation is interrupted: by signals, by kills, by other processes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.synthetic_slides import draw_section, write_pyramid
from tests.slides import short_segmentation
from tests.slides.slide_runs import (
    BY_COLOR,
    DETERMINISTIC,
    MPP,
    load_by_color,
    make_config,
    read_json,
    segment_by_color,
)
from wsss_jax import config as config_lib
from wsss_jax import files, jobs
from wsss_jax.errors import InputError, Preempted
from wsss_jax.report import slide_pictures
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping import networks

REPOSITORY = Path(__file__).parents[2]
KILLS = 10


def test_sigterm_stops_the_job_between_batches(slide, runs_dir, tmp_path, monkeypatch):
    def predict(images):
        os.kill(os.getpid(), signal.SIGTERM)
        return short_segmentation.predict(images)

    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    monkeypatch.setattr(networks, "load", lambda config: networks.Networks(predict, {}))
    with pytest.raises(
        Preempted, match="stopped by SIGTERM in a slide; the same command continues"
    ):
        jobs.run(config, workdir)
    assert not (workdir / "a slide" / "slide.json").exists()


def test_a_signal_after_the_last_tile_stops_nothing(slide, runs_dir, tmp_path, monkeypatch):
    def write_pictures(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        written(*arguments)

    written = slide_pictures.write_pictures
    monkeypatch.setattr(slide_pictures, "write_pictures", write_pictures)
    load_by_color(monkeypatch)
    jobs.run(make_config(slide, runs_dir), tmp_path / "maps")
    assert (tmp_path / "maps" / "a slide" / "slide.json").is_file()
    shutil.copy(slide, tmp_path / "b.svs")
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        jobs.run(make_config(f"{tmp_path / 'b.svs'},{slide}", runs_dir), tmp_path / "both")
    assert (tmp_path / "both" / "b" / "slide.json").is_file()


def test_a_kill_between_two_files_leaves_no_outdated_file(
    slide, finished, runs_dir, tmp_path, monkeypatch
):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities, config.palette = True, "colorblind"
    shutil.copytree(finished, workdir)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(slide_pictures, "write_pictures", killed)
        jobs.run(config, workdir)
    assert not (workdir / "a slide" / "slide.json").exists()
    jobs.run(config, workdir)
    jobs.run(config, tmp_path / "anew")
    for name in ("overlay.png", "label_map_rgb.tif", *DETERMINISTIC):
        expected = (tmp_path / "anew" / "a slide" / name).read_bytes()
        assert (workdir / "a slide" / name).read_bytes() == expected
    assert (workdir / "a slide" / "overlay.png").read_bytes() != (
        finished / "a slide" / "overlay.png"
    ).read_bytes()


def test_killed_slides_end_with_the_same_bytes(tmp_path):
    size = 160, 5000
    write_pyramid(tmp_path / "tall.svs", draw_section(*size), MPP)
    arguments = [tmp_path / "tall.svs", tmp_path, str(KILLS)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.slides.short_segmentation", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    killed = [path for path in tmp_path.glob("killed*") if path.is_dir()]
    assert killed
    undisturbed = read_json(tmp_path / "undisturbed" / "slide.json")
    resumed = 0
    for folder in killed:
        for name in DETERMINISTIC:
            assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
        summary = read_json(folder / "slide.json")
        assert summary["places"] == undisturbed["places"] != []
        resumed += summary["tiles_of_last_start"] < summary["tiles"]
        assert not list(folder.rglob(".unfinished.*"))
        assert not (folder / "preview.png").exists()
    assert resumed


def test_one_process_at_a_time_works_on_a_slide(slide, finished, runs_dir, tmp_path):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    with (
        files.hold_lock(workdir / "a slide" / "parts" / "lock"),
        pytest.raises(InputError, match=r"another process works in .*a slide/parts: wait until"),
    ):
        jobs.run(config, workdir)
    assert "another process works" in (workdir / "failed.txt").read_text()
    jobs.run(config, workdir)
    assert not (workdir / "failed.txt").exists()


def test_outdated_files_are_found_after_the_folder_is_locked(slide, tmp_path, monkeypatch):
    """Another process makes another map between the first look and the lock."""
    segment_by_color(slide, tmp_path / "map", **BY_COLOR)
    expected = segment_by_color(slide, tmp_path / "anew", picture=300, **BY_COLOR)
    real = tissue_map.hold_lock

    def late(path, **options):
        monkeypatch.setattr(tissue_map, "hold_lock", real)
        segment_by_color(slide, tmp_path / "map", stride=32, **BY_COLOR)
        return real(path, **options)

    monkeypatch.setattr(tissue_map, "hold_lock", late)
    summary = segment_by_color(slide, tmp_path / "map", picture=300, **BY_COLOR)
    assert summary["areas"] == expected["areas"]
    for name in DETERMINISTIC:
        assert (tmp_path / "map" / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()


def test_leftovers_in_a_folder_do_not_matter(slide, runs_dir, tmp_path, monkeypatch):
    load_by_color(monkeypatch)
    folder = tmp_path / "maps" / "a slide"
    (folder / ".unfinished.label_map.ome.tif.x").mkdir(parents=True)
    (folder / "slide.json").write_text("{}")
    config_lib.save(make_config(slide, runs_dir), tmp_path / "maps")
    jobs.run(make_config(slide, runs_dir), tmp_path / "maps")
    assert (folder / "areas.csv").is_file() and not list(folder.glob(".unfinished*"))
