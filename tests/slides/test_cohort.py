"""The files about all slides of a workdir, made from artificial summaries."""

import csv
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.dataset import load_dataset
from wsss_jax.report.colors import make_legend
from wsss_jax.slides.outputs import attention, cohort

LEGEND = make_legend(load_dataset("luad_histoseg", ""), "dataset")
RULES = attention.Rules(min_tissue=0.0, max_uncertain=0.25, outlier_z=3.5, min_slides=10)


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
    of_job = cohort.Cohort(LEGEND, [slide, *slides], [], RULES)
    cohort.write_cohort(workdir, of_job, slide, error)


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
    files = ["a", "areas.csv", "b", "bad", "cohort.csv", "index.html"]
    assert sorted(os.listdir(tmp_path)) == files


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


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_line_for_each_slide(tmp_path):
    row = {"class": "TE", "pixels": 10, "mm2": 2.5, "share_of_tissue": 0.5, "share_of_slide": 0.1}
    outside = {**row, "class": "outside tissue", "mm2": 9.0, "share_of_tissue": None}
    certainty = {"threshold": 0.6, "share": 0.4, "classes": {}}
    more = {"mpp": 0.25, "areas": [row, {**row, "class": "excluded in tissue"}, outside]}
    _finish(tmp_path, "=a", ratios={"tumor_stroma_ratio": 0.25}, confidence=certainty, **more)
    _finish(tmp_path, "b", warnings=["=odd", "/data/a study/b.svs is odd"])
    _write(tmp_path, "bad", "/data/a study/bad.svs: an empty file", slides=["later"])
    bad, first, second, later = _read_rows(tmp_path / "cohort.csv")
    assert [each["slide"] for each in (bad, first, second, later)] == ["bad", "'=a", "b", "later"]
    assert [each["state"] for each in (bad, first, second, later)] == [
        *("failed", "finished", "finished", "remaining")
    ]
    assert bad["error"] == "bad.svs: an empty file" and bad["needs a look"] == "failed"
    assert not any(later[key] for key in later if key not in ("slide", "state"))
    assert first["file"] == "'=a.svs" and first["um per pixel"] == "0.25"
    assert float(first["tissue (mm2)"]) == 5.0 and float(first["TE (mm2)"]) == 2.5
    assert float(first["TE: share of tissue"]) == 0.5 and first["NEC (mm2)"] == ""
    ratio = next(key for key in first if key.startswith("tumor-stroma ratio"))
    assert float(first[ratio]) == 0.25 and second[ratio] == ""
    assert first["confidence threshold"] == "0.6"
    assert float(first["share of area under it"]) == 0.4 and second["share of area under it"] == ""
    assert first["needs a look"] == "40.0 % of the area is under 0.6, more than 25.0 %"
    assert second["warnings"] == "2"
    assert second["needs a look"] == "2 warnings: =odd; b.svs is odd"


def test_names_that_are_no_text_are_listed(tmp_path):
    name = b"slide \xff".decode("utf-8", "surrogateescape")
    _write(tmp_path, "a", slides=[name])
    assert _read_column(tmp_path / "cohort.csv") == ["a", "slide \\udcff"]
    _write(tmp_path, name, "cut", slides=["a"])
    assert (tmp_path / "failed.txt").read_text() == "slide \\udcff: cut\n"
    _write(tmp_path, name, slides=["a"])
    assert not (tmp_path / "failed.txt").exists()


def test_slides_are_listed_before_the_first_is_tried(tmp_path):
    _finish(tmp_path, "a")
    (tmp_path / "failed.txt").write_text("c: an empty file\n")
    cohort.write_cohort(tmp_path, cohort.Cohort(LEGEND, ["a", "b", "c"], [], RULES))
    page = (tmp_path / "index.html").read_text().replace("\n", "")
    for state in ("<b>1</b> finished", "<b>1</b> failed", "<b>1</b> remaining"):
        assert state in page, state
    assert (tmp_path / "failed.txt").read_text() == "c: an empty file\n"
    assert _read_column(tmp_path / "cohort.csv", "state") == ["failed", "finished", "remaining"]


def test_jobs_write_one_after_the_other(tmp_path):
    _finish(tmp_path, "a")
    with ThreadPoolExecutor() as pool:  # locks are of open files, so of threads as of processes
        for written in [pool.submit(_write, tmp_path, name, "cut") for name in ("x", "y")]:
            written.result()
    assert set((tmp_path / "failed.txt").read_text().splitlines()) == {"x: cut", "y: cut"}
