import csv

import numpy as np
import pytest

from data.dataset import load_dataset
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import areas

LUAD = load_dataset("luad_histoseg", "")
COUNTS = np.array([300, 50, 0, 100, 1550])
FRAME = MapFrame(50, 40, 2.0, (1, 1), (50, 40))


def test_counts_every_pixel_once():
    labels = np.random.default_rng(0).integers(0, 4, (2050, 7)).astype(np.uint8)
    counts = areas.count_pixels(lambda y0, y1, step: labels[y0:y1:step, ::step], 2050, 4)
    assert counts.dtype == np.int64 and (counts == np.bincount(labels.ravel(), minlength=5)).all()


def test_rows_add_up_to_the_slide():
    table = areas.tabulate_areas(COUNTS, LUAD.classes, FRAME, tissue_pixels=500)
    assert [(row["class"], row["pixels"]) for row in table] == [
        ("TE", 300),
        ("NEC", 50),
        ("LYM", 0),
        ("TAS", 100),
        ("excluded in tissue", 50),
        ("outside tissue", 1500),
    ]
    assert table[0] == {
        "class": "TE",
        "pixels": 300,
        "mm2": pytest.approx(0.0012),
        "share_of_tissue": 0.6,
        "share_of_slide": 0.15,
    }
    assert sum(row["share_of_tissue"] for row in table[:-1]) == pytest.approx(1)
    assert table[-1]["share_of_tissue"] is None
    glass_frame = MapFrame(3, 3, 1.0, (1, 1), (3, 3))
    glass = areas.tabulate_areas(np.array([0, 0, 9]), ("a", "b"), glass_frame, tissue_pixels=0)
    assert glass[0]["share_of_tissue"] is None and glass[0]["share_of_slide"] == 0


def test_ratios_of_the_classes_that_there_are():
    assert areas.compute_ratios(COUNTS, LUAD.classes, LUAD.roles) == {
        "tumor_stroma_ratio": 0.25,
        "lymphocyte_area_fraction": 0.0,
    }
    three = load_dataset("wsss4luad", "")
    assert areas.compute_ratios(np.array([0, 0, 5, 1]), three.classes, three.roles) == {
        "tumor_stroma_ratio": None
    }
    assert areas.compute_ratios(COUNTS, LUAD.classes, {"tumor": "TE"}) == {}


def _read_lines(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_areas_are_one_table(tmp_path):
    table = areas.tabulate_areas(COUNTS, LUAD.classes, FRAME, tissue_pixels=500)
    areas.write_areas(tmp_path / "areas.csv", {'Gewebe "µ", 1': table})
    lines = _read_lines(tmp_path / "areas.csv")
    assert lines[0] == [
        "slide",
        "class",
        "pixels",
        "area (mm2)",
        "share of tissue",
        "share of slide",
    ]
    assert lines[1] == ['Gewebe "µ", 1', "TE", "300", "0.001200", "0.600000", "0.150000"]
    assert lines[6][4] == "" and len(lines) == 7
    assert [line[1] for line in lines[1:5]] == list(LUAD.classes)  # and no ratios among them


def test_ratios_are_a_line_of_their_own_table(tmp_path):
    ratios = {"tumor_stroma_ratio": 0.25, "lymphocyte_area_fraction": None}
    areas.write_ratios(tmp_path / "ratios.csv", {"a": ratios})
    heading, line = _read_lines(tmp_path / "ratios.csv")
    assert heading[1].startswith("tumor-stroma ratio") and heading[2].startswith("lymphocyte area")
    assert line == ["a", "0.250000", ""]
    assert areas.list_ratios(LUAD.roles) == list(ratios) and areas.list_ratios({}) == []


def test_no_name_starts_a_formula(tmp_path):
    names = ("=1+1", "-TE", "@SUM(A1)", "plain")
    table = areas.tabulate_areas(COUNTS, names, FRAME, tissue_pixels=500)
    areas.write_areas(tmp_path / "areas.csv", {"=HYPERLINK(1)": table})
    areas.write_ratios(tmp_path / "ratios.csv", {"+a": {"tumor_stroma_ratio": 0.25}})
    lines = _read_lines(tmp_path / "areas.csv")[1:]
    assert {line[0] for line in lines} == {"'=HYPERLINK(1)"}
    assert [line[1] for line in lines[:4]] == ["'=1+1", "'-TE", "'@SUM(A1)", "plain"]
    assert [line[2] for line in lines[:4]] == ["300", "50", "0", "100"]
    assert _read_lines(tmp_path / "ratios.csv")[1][0] == "'+a"
