"""How certain maps are, and what of it is found again, kept, or looked for once more."""

import json
import shutil

import numpy as np
import pytest
import tifffile

from data.synthetic import DATASET
from tests.slides.slide_runs import make_config, read_json, read_times, refuse_to_load
from wsss_jax import jobs
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import findings, places, results
from wsss_jax.slides.outputs.confidence import Confidence


@pytest.mark.parametrize("threshold", [0.0, 0.07, 0.3, 0.6, 1.0])
def test_counts_what_is_under_the_threshold(threshold):
    labels = np.repeat(np.arange(3, dtype=np.uint8), 256)[None]
    highest = np.tile(np.arange(256, dtype=np.uint8), 3)[None]
    confidence = Confidence(threshold, 2)
    confidence.add(labels, highest)
    expected = sum(value < round(threshold * 255, 9) for value in range(256))
    assert confidence.under.tolist() == [expected] * 2
    assert confidence.summarize(("a", "b")) == {
        "threshold": threshold,
        "share": expected / 256,
        "classes": {"a": expected / 256, "b": expected / 256},
    }


def test_a_class_without_area_has_no_share():
    confidence = Confidence(0.5, 2)
    assert confidence.summarize(("a", "b"))["share"] is None
    confidence.add(np.zeros((2, 2), np.uint8), np.array([[0, 127], [128, 255]], np.uint8))
    assert confidence.summarize(("a", "b")) == {
        "threshold": 0.5,
        "share": 0.5,
        "classes": {"a": 0.5, "b": None},
    }


def _find_again(folder, summary):
    labels = tifffile.imread(folder / "label_map.ome.tif")
    highest = tifffile.imread(folder / "probabilities.ome.tif").max(axis=0)
    return labels, highest, summary["confidence"]


def test_the_summary_says_what_the_stored_probabilities_say(finished):
    folder = finished / "a slide"
    summary = read_json(folder / "slide.json")
    labels, highest, confidence = _find_again(folder, summary)
    is_class = labels < DATASET.num_classes
    assert confidence["threshold"] == 0.6
    assert confidence["share"] == (highest[is_class] < 153).mean()
    for value, name in enumerate(DATASET.classes):
        of_class = highest[labels == value]
        expected = (of_class < 153).mean() if of_class.size else None
        assert confidence["classes"][name] == expected
    listed = [place for place in summary["places"] if place["kind"] == places.UNCERTAIN]
    assert listed
    for place in listed:
        left, top, width, height = (round(side / 2) for side in place["box"])
        inside = np.s_[top : top + height, left : left + width]
        assert place["value"] == pytest.approx(highest[inside][is_class[inside]].mean() / 255)
    regions = [place for place in summary["places"] if place["kind"] == places.REGION]
    assert len(regions) == len(np.unique(labels[is_class]))


def test_the_report_shows_places_and_certainty(finished):
    folder = finished / "a slide"
    summary, page = read_json(folder / "slide.json"), (folder / "report.html").read_text("utf-8")
    assert "highest class probability there is lower" in page
    assert page.count("data-viewer hidden") == 1 + len(summary["places"])
    assert page.count("data:image/jpeg") == 1 + len(summary["places"])
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_without_probabilities_the_report_says_how_to_get_them(
    slide, finished, runs_dir, tmp_path, monkeypatch, capsys
):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    shutil.copytree(finished, workdir)
    monkeypatch.setattr(networks, "load", refuse_to_load)
    jobs.run(config, workdir)
    summary = read_json(workdir / "a slide" / "slide.json")
    assert summary["confidence"] is None
    assert places.UNCERTAIN not in {place["kind"] for place in summary["places"]}
    page = (workdir / "a slide" / "report.html").read_text("utf-8")
    assert "--config.probabilities=True" in page and "Least certain" not in page
    assert "Uncertain</th>" not in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"confidence": 0.9}, "other confidence"),
        ({"places.per_kind": 0}, "other places"),
        ({"places.uncertain": 100.0, "places.thumbnail": 100}, "other places"),
    ],
)
def test_other_settings_need_no_network_and_change_no_map(
    slide, finished, runs_dir, tmp_path, monkeypatch, capsys, changes, said
):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    config.update_from_flattened_dict(changes)
    monkeypatch.setattr(networks, "load", refuse_to_load)
    before = read_times(workdir / "a slide")
    jobs.run(config, workdir)
    assert f"was finished with {said}: done again" in capsys.readouterr().out
    after = read_times(workdir / "a slide")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"report.html", "slide.json"}
    first, second = (read_json(each / "a slide" / "slide.json") for each in (finished, workdir))
    assert (first["places"], first["confidence"]) != (second["places"], second["confidence"])


def test_findings_are_kept_if_only_pictures_change(
    slide, finished, runs_dir, tmp_path, monkeypatch
):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities, config.picture = True, 300
    shutil.copytree(finished, workdir)
    monkeypatch.setattr(findings, "find_largest_regions", refuse_to_load)
    jobs.run(config, workdir)
    first, second = (read_json(each / "a slide" / "slide.json") for each in (finished, workdir))
    assert first["places"] == second["places"] and first["confidence"] == second["confidence"]


def test_summaries_of_earlier_versions_are_finished_if_nothing_is_looked_for(
    slide, finished, runs_dir, tmp_path, monkeypatch, capsys
):
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    path = workdir / "a slide" / "slide.json"
    summary = read_json(path)
    for key in ("places", "confidence"):
        del summary[key], summary["settings"]["output"][key]
    path.write_text(json.dumps(summary))
    monkeypatch.setattr(networks, "load", refuse_to_load)
    config.places.per_kind, config.confidence = 0, 0.0
    jobs.run(config, workdir)
    assert "1 of 1: a slide: finished before" in capsys.readouterr().out
    assert "<b>1</b> finished" in (workdir / "index.html").read_text("utf-8")
    config.picture = 300
    jobs.run(config, workdir)
    page = (workdir / "a slide" / "report.html").read_text("utf-8")
    assert "Worth a look" not in page and "set --config.confidence=0.6" in page
    config.places.per_kind, config.confidence = 3, 0.6
    jobs.run(config, workdir)
    assert "was finished with other confidence, places: done again" in capsys.readouterr().out
    again, first = read_json(path), read_json(finished / "a slide" / "slide.json")
    assert again["places"] == first["places"] and again["confidence"] == first["confidence"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("places", 5),
        ("places", [{"kind": "x", "text": "y", "box": [1, 2, 3], "value": 1, "center": [1, 2]}]),
        ("places", [{"kind": "x", "text": "y", "box": "1234", "value": 1, "center": [1, 2]}]),
        ("confidence", {"threshold": 0.5, "share": "<b>", "classes": {}}),
        ("confidence", {"threshold": "0.5", "share": 0.5, "classes": {}}),
        ("confidence", {"threshold": 0.5, "share": 0.5, "classes": {"a": []}}),
    ],
)
def test_a_summary_with_damaged_findings_is_none(finished, tmp_path, field, value):
    summary = read_json(finished / "a slide" / "slide.json")
    (tmp_path / "slide.json").write_text(json.dumps(summary))
    assert results.read_summary(tmp_path) == summary
    (tmp_path / "slide.json").write_text(json.dumps({**summary, field: value}))
    assert results.read_summary(tmp_path) is None
