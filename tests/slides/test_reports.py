"""Reports and indexes of segmented slides."""

import json
import shutil
from pathlib import Path

import pytest
import shapely

from data.synthetic import DATASET
from tests.slides import short_segmentation
from tests.slides.slide_runs import load_by_color, make_config, read_json
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import cohort, report_data


def test_reports_describe_networks_and_polygons(slide, finished, runs_dir, tmp_path, capsys):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities, config.geojson.min_area = True, 20_000.0
    shutil.copytree(finished, workdir)
    jobs.run(config, workdir)
    assert "warning: Phase 2 was trained on tissue drawn by a program" in capsys.readouterr().out
    first, second = (read_json(folder / "a slide" / "slide.json") for folder in (finished, workdir))
    shares = [share for share in first["polygon_shares"].values() if share is not None]
    assert shares == pytest.approx([1] * len(shares))
    assert not any("polygons" in warning for warning in first["warnings"])
    assert any("drawn by a program" in warning for warning in first["warnings"])
    assert first["networks"]["phase2"]["epochs"] == 1
    covered = dict.fromkeys(DATASET.classes, 0.0)
    for feature in json.loads((workdir / "a slide" / "tissue.geojson").read_text())["features"]:
        name = feature["properties"]["classification"]["name"]
        covered[name] += shapely.geometry.shape(feature["geometry"]).area / 4
    pixels = {row["class"]: row["pixels"] for row in second["areas"]}
    for name, share in second["polygon_shares"].items():
        assert share is None or share == pytest.approx(covered[name] / pixels[name])
    assert any(warning.startswith("the polygons of") for warning in second["warnings"])
    page = (workdir / "a slide" / "report.html").read_text("utf-8")
    for words in (
        "synthetic tissue (drawn by a program)",
        "1 of 1",
        "the polygons of",
        " in polygons",
    ):
        assert words in page, words


def test_the_gate_is_named_by_its_method(finished):
    summary = read_json(finished / "a slide" / "slide.json")
    facts = report_data.describe_map(summary)
    assert "to which phase 1 gives" in facts["Method"]["Gate"] and "Phase 1" in facts["Networks"]
    summary["networks"]["phase1"]["method"] = "SC-CAM"
    facts = report_data.describe_map(summary)
    assert "to which SC-CAM gives" in facts["Method"]["Gate"]
    assert {"SC-CAM", "SC-CAM: epochs", "Phase 2"} < facts["Networks"].keys()
    assert "Phase 1" not in facts["Networks"]
    del summary["networks"]["phase1"]["method"]  # as version 0.3.0 wrote it
    assert "Phase 1" in report_data.describe_map(summary)["Networks"]


def test_messages_on_pages_name_files_without_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = Path("slides"), tmp_path / "maps", Path()
    for text in (f"{tmp_path}/slides/a.svs: bad", "slides/a.svs: bad", f"{tmp_path}/a.svs: bad"):
        assert cohort.remove_folders(text, folders) == "a.svs: bad"
    for kept in ("../a.svs or ./b.svs of the folder maps", "1.5 mm/px and tissue/slides/x.png"):
        assert cohort.remove_folders(kept, folders) == kept
    assert cohort.remove_folders("see /data/x/b.svs; or (/data/c.svs)", ()) == (
        "see b.svs; or (c.svs)"
    )
    spaces = Path("/data/of a study/x")
    assert cohort.remove_folders(f"{spaces}/a b.svs: bad", [spaces]) == "a b.svs: bad"


def test_pages_do_not_show_folders_of_the_machine(slide, runs_dir, tmp_path, monkeypatch):
    load_by_color(monkeypatch)
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "empty.svs").touch()
    (tmp_path / "slides" / "good.svs").symlink_to(slide)
    with pytest.raises(InputError, match="an empty file"):
        jobs.run(make_config(tmp_path / "slides", runs_dir), tmp_path / "maps")
    for page in ("index.html", "good/report.html"):
        text = (tmp_path / "maps" / page).read_text("utf-8")
        assert str(tmp_path) not in text and str(runs_dir) not in text
    assert "empty.svs: an empty file" in (tmp_path / "maps" / "index.html").read_text("utf-8")
    assert str(tmp_path) in (tmp_path / "maps" / "good" / "slide.json").read_text("utf-8")


def test_the_index_exists_while_the_first_slide_is_worked_on(
    slide, runs_dir, tmp_path, monkeypatch
):
    pages = []

    def predict(images):
        pages.append((workdir / "index.html").read_text("utf-8").replace("\n", ""))
        return short_segmentation.predict(images)

    workdir, other = tmp_path / "maps", tmp_path / "b.svs"
    shutil.copy(slide, other)
    monkeypatch.setattr(networks, "load", lambda config: networks.Networks(predict, {}))
    jobs.run(make_config(f"{other},{slide}", runs_dir), workdir)
    assert "<b>0</b> finished" in pages[0] and "<b>2</b> remaining" in pages[0]
    assert "a slide" in pages[0] and "Reload it" in pages[0]
    assert "<b>1</b> finished" in pages[-1] and "<b>1</b> remaining" in pages[-1]
    page = (workdir / "index.html").read_text("utf-8")
    assert "Reload it" not in page and "2 slides" in page
