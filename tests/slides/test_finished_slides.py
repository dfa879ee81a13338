"""Slides that were segmented before: what is kept, and what is made again."""

import json
import shutil

import numpy as np
import pytest
import tifffile

from tests.slides.slide_runs import (
    BY_COLOR,
    DETERMINISTIC,
    make_config,
    read_json,
    read_times,
    refuse_to_load,
    segment_by_color,
)
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import results


def test_finished_slides_are_skipped_unless_settings_changed(
    slide, finished, runs_dir, tmp_path, capsys
):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    jobs.run(config, workdir)
    for name in DETERMINISTIC:  # of two runs
        assert (workdir / "a slide" / name).read_bytes() == (
            finished / "a slide" / name
        ).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (workdir / "a slide").iterdir()}
    capsys.readouterr()
    jobs.run(config, workdir)
    assert "1 of 1: a slide: finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    config.window, config.probabilities = "hann", False
    jobs.run(config, workdir)
    changed = "was finished with other confidence, probabilities, window: done again"
    assert changed in capsys.readouterr().out
    assert not (workdir / "a slide" / "probabilities.ome.tif").exists()
    assert (workdir / "a slide" / "report.html").stat().st_mtime_ns > max(before.values())


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"picture": 300}, {"overlay.png", "thumbnail.png", "small.jpg"}),
        (
            {"palette": "colorblind"},
            {"overlay.png", "thumbnail.png", "small.jpg", "label_map_rgb.tif"},
        ),
        ({"geojson.min_area": 100.0}, {"tissue.geojson"}),
        ({"probabilities": False}, set()),
    ],
)
def test_files_depend_on_their_own_settings(
    slide, finished, runs_dir, tmp_path, monkeypatch, changes, written
):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    config.update_from_flattened_dict(changes)
    monkeypatch.setattr(networks, "load", refuse_to_load)
    before = read_times(workdir / "a slide")
    jobs.run(config, workdir)
    after = read_times(workdir / "a slide")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {*written, "report.html", "slide.json"}
    gone = set() if config.probabilities else {"probabilities.ome.tif"}
    assert before.keys() - after.keys() == gone
    jobs.run(config, workdir)
    assert read_times(workdir / "a slide") == after
    # The parts still have what they had: a slide without them is made anew, not its tiles.
    (workdir / "a slide" / "slide.json").unlink()
    (workdir / "a slide" / "areas.csv").unlink()
    jobs.run(config, workdir)
    assert read_json(workdir / "a slide" / "slide.json")["tiles_of_last_start"] == 0
    assert (workdir / "a slide" / "areas.csv").read_bytes() == (
        finished / "a slide" / "areas.csv"
    ).read_bytes()


def test_other_polygons_and_pictures_need_no_new_tiles(slide, finished, runs_dir, tmp_path, capsys):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    config.geojson.min_area, config.picture = 100.0, 300
    jobs.run(config, workdir)
    assert "was finished with other geojson, picture: done again" in capsys.readouterr().out
    assert read_json(workdir / "a slide" / "slide.json")["tiles_of_last_start"] == 0
    first, second = (
        {path.name: path.read_bytes() for path in (folder / "a slide").iterdir() if path.is_file()}
        for folder in (finished, workdir)
    )
    same = {name for name in first if first[name] == second[name]}
    maps = {"label_map.ome.tif", "label_map_rgb.tif", "probabilities.ome.tif"}
    assert same == {*maps, "areas.csv"}
    assert len(second["tissue.geojson"]) < len(first["tissue.geojson"])


def test_other_resampling_makes_a_new_map(slide, tmp_path, capsys):
    changes = {"mpp": 0.7, "tissue.min_tissue": 500.0}
    first = segment_by_color(slide, tmp_path / "map", **changes)
    assert first["settings"]["map"]["resampling"] == "area"
    labels = (tmp_path / "map/label_map.ome.tif").read_bytes()
    second = segment_by_color(slide, tmp_path / "map", resampling="triangle", **changes)
    assert "was finished with other resampling: done again" in capsys.readouterr().out
    assert second["settings"]["map"]["resampling"] == "triangle"
    assert second["tiles_of_last_start"] == second["tiles"]
    assert (tmp_path / "map/label_map.ome.tif").read_bytes() != labels
    assert "triangle filter" in (tmp_path / "map/report.html").read_text()


def test_networks_that_changed_are_loaded(slide, finished, runs_dir, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "maps")
    shutil.copytree(runs_dir / "phase2", tmp_path / "phase2")
    config = make_config(slide, runs_dir)
    config.probabilities, config.phase2 = True, str(tmp_path / "phase2")
    before = read_times(tmp_path / "maps" / "a slide")
    jobs.run(config, tmp_path / "maps")  # a copy: other files, the same weights
    assert read_times(tmp_path / "maps" / "a slide") == before
    (tmp_path / "phase2" / "dataset.json").touch()  # its content is what counts
    monkeypatch.setattr(networks, "load", refuse_to_load)
    jobs.run(config, tmp_path / "maps")
    variables = next((tmp_path / "phase2" / "checkpoints").glob("*/variables"))
    (variables / "another").touch()
    with pytest.raises(AssertionError, match="a network is loaded"):
        jobs.run(config, tmp_path / "maps")


def test_precision_is_part_of_the_map(slide, finished, runs_dir, tmp_path, capsys):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    config.precision = "float32"  # what they were trained in
    jobs.run(config, workdir)
    assert "finished before" in capsys.readouterr().out
    config.precision = "bfloat16"
    jobs.run(config, workdir)
    assert "was finished with other networks, precision: done again" in capsys.readouterr().out
    summary = read_json(workdir / "a slide" / "slide.json")
    both = {"phase1": "bfloat16", "phase2": "bfloat16"}
    assert summary["settings"]["map"]["precision"] == both
    exact, coarse = (
        tifffile.imread(folder / "a slide" / "probabilities.ome.tif").astype(int)
        for folder in (finished, workdir)
    )
    assert (exact != coarse).any() and np.abs(exact - coarse).mean() < 8


def test_damaged_files_are_written_again(slide, tmp_path, capsys):
    segment_by_color(slide, tmp_path / "map", **BY_COLOR)
    whole = (tmp_path / "map" / "label_map.ome.tif").read_bytes()
    for content in (b"", whole[:-100]):
        (tmp_path / "map" / "label_map.ome.tif").write_bytes(content)
        before = read_times(tmp_path / "map")
        segment_by_color(slide, tmp_path / "map", **BY_COLOR)
        said = capsys.readouterr().out
        assert "finished with files that are missing or cut short: done again" in said
        after = read_times(tmp_path / "map")
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {"label_map.ome.tif", "report.html", "slide.json"}
        assert (tmp_path / "map" / "label_map.ome.tif").read_bytes() == whole


def test_other_files_are_not_touched(slide, tmp_path):
    folder = tmp_path / "map"
    folder.mkdir()
    for name in ("tissue.geojson", "probabilities.ome.tif"):
        (folder / name).write_text("theirs")
    with pytest.raises(InputError, match=r"map has files that .* such as probabilities\.ome\.tif"):
        segment_by_color(slide, folder, **BY_COLOR)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "tissue.geojson": "theirs",
        "probabilities.ome.tif": "theirs",
    }
    for path in folder.iterdir():
        path.unlink()
    (folder / ".hidden").touch()
    segment_by_color(slide, folder, **BY_COLOR)
    (folder / "probabilities.ome.tif").write_text("theirs")
    segment_by_color(slide, folder, **BY_COLOR, picture=300)
    assert (folder / "probabilities.ome.tif").read_text() == "theirs"


@pytest.mark.parametrize(
    ("field", "value"),
    [("areas", None), ("settings", {"map": None}), ("name", 5), ("ratios", []), ("files", [1])],
)
def test_a_slide_with_a_damaged_summary_is_not_finished(slide, tmp_path, field, value):
    summary = {
        "settings": {"map": {}, "output": {}},
        **{"files": [], "tiles": 1, "tissue_pixels": 1, "areas": [], "ratios": {}},
        **{"warnings": [], "name": "a", "file": "a.svs"},
    }
    (tmp_path / "slide.json").write_text(json.dumps(summary))
    assert results.read_summary(tmp_path) == summary
    (tmp_path / "slide.json").write_text(json.dumps(summary | {field: value}))
    assert results.read_summary(tmp_path) is None
