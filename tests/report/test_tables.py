import csv
import json
import math

import pytest

from wsss_jax.report import tables

CLASSES = ("TE", "NEC")
SCORES = {"iou": [0.755671, 1.0], "fwiou": 0.5, "miou": 0.877836, "acc": 0.9, "class_acc": 0.8}
UNDEFINED = {**SCORES, "iou": [0.0, math.nan], "class_acc": math.nan}


def test_row_is_the_papers():
    row = tables.format_table([("phase 2", SCORES)], CLASSES).splitlines()[-1]
    assert row.split("  ")[0] == "phase 2"
    assert row.split()[2:] == [".75567", "1.00000", ".50000", ".87784", ".90000"]


def test_table_is_aligned():
    rows = [("phase 1", SCORES), ("phase 2 + gate", UNDEFINED)]
    table = tables.format_table(rows, ("TE", "a class with a long name"))
    heading, rule, *lines = table.splitlines()
    assert heading.split()[0] == "method"
    assert heading.endswith("ACC")
    assert set(rule) == {"-"}
    assert {len(line) for line in (heading, rule, *lines)} == {len(heading)}
    assert lines[1].split()[4:6] == [".00000", "-"]


def test_names_must_match_the_scores():
    with pytest.raises(ValueError, match="zip"):
        tables.format_table([("phase 1", SCORES)], ("TE", "NEC", "LYM"))


def test_json_and_csv_hold_the_same(tmp_path):
    path_json, path_csv = tmp_path / "new" / "scores.json", tmp_path / "new" / "scores.csv"
    rows = [("phase 1", SCORES), ("phase 2", UNDEFINED)]
    tables.write_scores(path_json, path_csv, rows, CLASSES, {"split": "test"})

    document = json.loads(path_json.read_text(), parse_constant=pytest.fail)
    assert document["meta"] == {"split": "test"}
    assert document["classes"] == list(CLASSES)
    assert document["rows"][0]["iou"] == {"TE": 0.755671, "NEC": 1.0}
    assert document["rows"][1]["iou"]["NEC"] is None
    assert document["rows"][1]["class_acc"] is None

    with path_csv.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["name", "TE", "NEC", "FwIoU", "mIoU", "ACC", "class ACC"]
    assert float(first["TE"]) == 0.755671
    assert second["name"] == "phase 2"
    assert second["NEC"] == second["class ACC"] == ""


def test_nothing_is_written_when_meta_is_no_json(tmp_path):
    paths = tmp_path / "scores.json", tmp_path / "scores.csv"
    with pytest.raises(TypeError):
        tables.write_scores(*paths, [("phase 1", SCORES)], CLASSES, {"path": tmp_path})
    assert not list(tmp_path.iterdir())


def test_names_begin_no_formula(tmp_path):
    paths = tmp_path / "scores.json", tmp_path / "scores.csv"
    tables.write_scores(*paths, [("=phase 1", SCORES)], ("=TE", "-NEC"), {})
    with paths[1].open(newline="") as file:
        heading, line = csv.reader(file)
    assert heading[:3] == ["name", "'=TE", "'-NEC"] and line[:2] == ["'=phase 1", "0.755671"]
    assert json.loads(paths[0].read_text())["classes"] == ["=TE", "-NEC"]
