"""What makes maps faster: as fields of the job, in its settings, and on several devices."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.slides.slide_runs import BY_COLOR, make_config, read_json, read_times, segment_by_color
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.slides import settings, tissue_map

REPOSITORY = Path(__file__).parents[2]


def test_fast_decides_what_is_not_set(slide, runs_dir):
    config = make_config(slide, runs_dir)
    assert settings.complete(config)[0].gate.stride == 0
    config.speed = "fast"
    completed, _ = settings.complete(config)
    assert completed.gate.stride == 32  # with tiles every 16
    config.gate.stride = 24
    assert settings.complete(config)[0].gate.stride == 24
    config.gate.stride = 16  # the windows are the tiles: as the method is defined
    assert settings.complete(config)[0].gate.stride == 0
    for stride in (15, 33):
        config.gate.stride = stride
        with pytest.raises(
            InputError, match=rf"config.gate.stride is {stride}: set it to 16 .* to 32"
        ):
            settings.complete(config)


def test_windows_of_the_gate_are_part_of_the_map(slide, finished, runs_dir, tmp_path):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.gate.stride, config.probabilities = 32, True
    jobs.run(config, workdir)
    summary = read_json(workdir / "a slide" / "slide.json")
    assert summary["settings"]["map"]["gate"]["stride"] == 32
    assert "windows every 32 pixels" in (workdir / "a slide" / "report.html").read_text()
    tiles = {
        folder: read_json(folder / "a slide/slide.json")["tiles"] for folder in (finished, workdir)
    }
    assert tiles[workdir] == tiles[finished]
    every_tile, shared = (
        tifffile.imread(folder / "a slide" / "probabilities.ome.tif").astype(int)
        for folder in (finished, workdir)
    )
    assert np.abs(every_tile - shared).mean() < 20
    labels = (workdir / "a slide" / "label_map.ome.tif").read_bytes()
    for part in list((workdir / "a slide" / "parts").glob("part_*"))[:1]:
        part.unlink()
    (workdir / "a slide" / "slide.json").unlink()
    jobs.run(config, workdir)  # with networks that the first tiles load
    assert (workdir / "a slide" / "label_map.ome.tif").read_bytes() == labels


def test_maps_of_earlier_versions_stay_finished(slide, tmp_path, monkeypatch, capsys):
    """They lack the settings that matter only to rounding, until tiles are computed again."""
    collect = tissue_map._collect_settings

    def collect_earlier(*arguments):
        found = collect(*arguments)
        own = found["map"]
        return {**found, "map": {k: v for k, v in own.items() if k not in tissue_map._ROUNDING}}

    folder = tmp_path / "map"
    with monkeypatch.context() as patch:
        patch.setattr(tissue_map, "_collect_settings", collect_earlier)
        before = segment_by_color(slide, folder, **BY_COLOR)["settings"]["map"]
    times = read_times(folder)
    segment_by_color(slide, folder, **BY_COLOR)
    assert read_times(folder) == times
    second = segment_by_color(slide, folder, picture=300, **BY_COLOR)
    assert second["tiles_of_last_start"] == 0 and second["settings"]["map"] == before
    next((folder / "parts").glob("part_*")).unlink()
    third = segment_by_color(slide, folder, picture=320, **BY_COLOR)
    assert third["tiles_of_last_start"] == third["tiles"]
    assert third["settings"]["map"] == {**before, "batch_norm": "folded", "white_tiles": "left out"}
    assert (
        "parts made with another batch_norm, white_tiles: started again" in capsys.readouterr().out
    )


def test_tiles_that_hardly_overlap_make_a_preview(slide, tmp_path):
    for stride, is_preview in ((64, True), (33, True), (32, False)):
        summary = segment_by_color(slide, tmp_path / str(stride), stride=stride, **BY_COLOR)
        assert any("a preview: tiles of 64" in text for text in summary["warnings"]) == is_preview
    assert "a preview: tiles of 64" in (tmp_path / "64" / "report.html").read_text()


def test_tiles_with_little_tissue_are_part_of_the_settings(slide, tmp_path):
    whole = segment_by_color(slide, tmp_path / "whole", **BY_COLOR)
    fewer = segment_by_color(slide, tmp_path / "fewer", min_tissue_share=0.5, **BY_COLOR)
    assert fewer["tiles"] < whole["tiles"]
    assert fewer["settings"]["map"] == {**whole["settings"]["map"], "min_tissue_share": 0.5}
    assert "less than 50% is tissue" in (tmp_path / "fewer" / "report.html").read_text()


def test_eight_devices_share_windows_as_one_does(tmp_path):
    found = {}
    for devices in (1, 8):
        flags = (
            f"--xla_force_host_platform_device_count={devices}",
            "--xla_backend_optimization_level=0",  # of LLVM; compiles in half the time
        )
        environment = os.environ | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(REPOSITORY)}
        out = tmp_path / f"{devices}.npz"
        command = [sys.executable, "-m", "tests.slides.gate_on_devices", out]
        subprocess.run(command, env=environment, check=True, cwd=REPOSITORY)
        with np.load(out) as results:
            found[devices] = dict(results)
        assert found[devices].pop("devices") == devices
    assert len(np.unique(found[1]["labels"])) > 1 and found[1]["maps"].std() > 5
    np.testing.assert_allclose(found[8]["maps"].astype(int), found[1]["maps"], rtol=0, atol=1)
    assert (found[8]["labels"] == found[1]["labels"]).mean() > 0.999
