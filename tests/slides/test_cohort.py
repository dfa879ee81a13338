"""The files about all slides of a workdir, made from artificial summaries."""

import csv
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.dataset import load_dataset
from wsss_jax.report.colors import make_legend
from wsss_jax.slides.outputs import cohort

LEGEND = make_legend(load_dataset("luad_histoseg", ""), "dataset")


def _finish(workdir: Path, name: str, **changes) -> None:
    row = {"class": "TE", "pixels": 10, "mm2": 1e-5, "share_of_tissue": 0.5, "share_of_slide": 0.25}
    summary = {
        "settings": {"map": {}, "output": {}},
        **{"files": [], "tiles": 1, "tissue_pixels": 20, "areas": [row], "warnings": []},
        **{"ratios": {}, "name": name, "file": f"/data/a study/{name}.svs"},
    }
    (workdir / name).mkdir(parents=True)
    (workdir / name / "slide.json").write_text(json.dumps(summary | changes))


def _write(workdir: Path, slide: str, error: str = "", slides=()) -> None:
    cohort.write_cohort(workdir, LEGEND, slide, error, [slide, *slides], [])


def _read_column(path: Path, key: str = "slide") -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row[key] for row in csv.DictReader(file)]


def test_later_jobs_keep_the_failures_and_maps_of_earlier_ones(tmp_path):
    _finish(tmp_path, "b")
    _write(tmp_path, "bad", "/x/bad.svs: an empty file")
    _write(tmp_path, "a", "no tissue")
    _write(tmp_path, "b")
    _finish(tmp_path, "a")
    _write(tmp_path, "a", slides=["c"])
    assert _read_column(tmp_path / "areas.csv") == ["a", "b"]
    assert (tmp_path / "failed.txt").read_text() == "bad: /x/bad.svs: an empty file\n"
    page = (tmp_path / "index.html").read_text()
    assert "bad.svs: an empty file" in page and "/x/" not in page
    for state in ("<b>2</b> finished", "<b>1</b> failed", "<b>1</b> remaining"):
        assert state in page.replace("\n", ""), state
    _finish(tmp_path, "bad")
    _write(tmp_path, "bad")
    assert not (tmp_path / "failed.txt").exists()
    assert sorted(os.listdir(tmp_path)) == ["a", "areas.csv", "b", "bad", "index.html"]


def test_an_earlier_map_of_a_failed_slide_is_not_listed(tmp_path):
    for name in ("a", "b"):
        _finish(tmp_path, name)
    _write(tmp_path, "a", "cut")
    _write(tmp_path, "b", slides=["a"])
    assert _read_column(tmp_path / "areas.csv") == ["b"]
    _write(tmp_path, "a")  # by another job
    _write(tmp_path, "b", slides=["a"])
    assert _read_column(tmp_path / "areas.csv") == ["a", "b"]


def test_a_missing_or_damaged_folder_costs_only_its_own_row(tmp_path):
    for name in ("a", "b", "c"):
        _finish(tmp_path, name)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "b" / "slide.json").write_text('{"areas": 5')
    (tmp_path / "c" / "areas.csv").write_bytes(b"Pr\xe4parat;1")  # as saved by another program
    _write(tmp_path, "a", slides=["b", "c"])
    assert _read_column(tmp_path / "areas.csv") == ["c"]
    assert "<b>2</b> remaining" in (tmp_path / "index.html").read_text()


def test_tables_of_slides_with_other_ratios_have_one_heading(tmp_path):
    _finish(tmp_path, "a", ratios={"tumor_stroma_ratio": 0.25})
    _finish(tmp_path, "b", ratios={"lymphocyte_area_fraction": None, "tumor_stroma_ratio": 0.5})
    _write(tmp_path, "a", slides=["b"])
    with (tmp_path / "ratios.csv").open(encoding="utf-8-sig", newline="") as file:
        heading, *rows = csv.reader(file)
    assert [name.split()[0] for name in heading] == ["slide", "tumor-stroma", "lymphocyte"]
    assert rows == [["a", "0.250000", ""], ["b", "0.500000", ""]]


def test_pages_do_not_show_folders_of_other_slides(tmp_path):
    _finish(tmp_path, "a")
    error = "b.svs: a has the map of another slide, /data/a study/a.svs; name another --workdir"
    _write(tmp_path, "b", error)
    assert "another slide, a.svs; name" in (tmp_path / "index.html").read_text()


def test_another_slide_of_the_same_name_does_not_hide_a_map(tmp_path):
    _finish(tmp_path, "a")
    error = f"y/a.svs: {tmp_path}/a has the map of another slide, /data/a study/a.svs; name"
    _write(tmp_path, "a", error)
    assert _read_column(tmp_path / "areas.csv") == ["a"]
    assert "<b>1</b> finished" in (tmp_path / "index.html").read_text()


def test_jobs_write_one_after_the_other(tmp_path):
    _finish(tmp_path, "a")
    with ThreadPoolExecutor() as pool:  # locks are of open files, so of threads as of processes
        for written in [pool.submit(_write, tmp_path, name, "cut") for name in ("x", "y")]:
            written.result()
    assert set((tmp_path / "failed.txt").read_text().splitlines()) == {"x: cut", "y: cut"}
