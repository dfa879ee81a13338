"""The paper's tables: what was published, what was measured, in every format."""

import csv
import json

import numpy as np
import pytest

from wsss_jax.report import paper_tables, tables_page
from wsss_jax.report.figures import write_confusion_matrix
from wsss_jax.report.paper_tables import TABLES, Filled, Measured
from wsss_jax.report.tables_page import Details

LUAD = ("TE", "NEC", "LYM", "TAS")


def fill(measured, published="luad_histoseg", classes=LUAD, tables=TABLES):
    return paper_tables.fill(
        tables, classes, measured, paper_tables.load_published(published, classes)
    )


def scores(*values):
    return np.array([*values, 0.99])  # class ACC, which the paper has not


GATED = Measured(
    {0: scores(0.8, 0.7, 0.6, 0.5, 0.7, 0.65, 0.9), 3: scores(0.6, 0.7, 0.8, 0.7, 0.8, 0.75, 0.8)},
    {0: 0.9, 3: 0.95},
)


def test_published_figures_agree_with_themselves():
    for name, classes in (("luad_histoseg", LUAD), ("bcss_wsss", ("TUM", "STR", "LYM", "NEC"))):
        tables = paper_tables.load_published(name, classes)
        for number, rows in tables.items():
            table = next(table for table in TABLES if table.number == number)
            assert set(rows) <= set(table.rows)
            for values in rows.values():
                assert len(values) == (1 if table.of_patches else 7)
                if not table.of_patches:  # the mIoU is the mean of the classes
                    assert np.mean(values[:4]) == pytest.approx(values[5], abs=6e-5)
        assert tables["I"]["phase1"] == tables.get("III", tables["I"])["phase1"]


def test_figures_of_other_classes_are_not_shown():
    assert paper_tables.load_published("luad_histoseg", ("TE", "NEC", "LYM")) == {}
    assert paper_tables.load_published("", LUAD) == {}
    grids = fill({"gated": GATED}, published="bcss_wsss")
    assert {line.statistic for grid in grids for line in grid.lines} == {"measured", "sd"}


def test_a_table_shows_mean_spread_and_difference():
    (first, *_), by_number = fill({"gated": GATED}), {}
    by_number = {line.statistic: line.values for line in first.lines if line.row == "gated"}
    assert first.headings == (*LUAD, "FwIoU", "mIoU", "ACC")
    assert by_number["measured"] == pytest.approx((0.7, 0.7, 0.7, 0.6, 0.75, 0.7, 0.85))
    assert by_number["sd"][0] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    assert by_number["published"][5] == 0.75603
    assert by_number["difference"][5] == pytest.approx(0.7 - 0.75603)


def test_rows_that_nobody_knows_are_left_out():
    grids = fill({"supervised": GATED}, published="", classes=LUAD)
    assert [(grid.table.number, len(grid.lines)) for grid in grids] == [("II", 2)]
    # Published ones stay: a reader sees what is missing.
    rows = [line.row for line in fill({})[0].lines]
    assert rows == ["histosegnet", "sccam", "phase1", "gated"]


def test_patch_labels_have_a_table_of_their_own():
    plain = Measured({0: GATED.pixels[0]}, {0: 0.91})
    (grid,) = fill({"plain": plain}, tables=TABLES[3:])
    assert grid.headings == ("accuracy of patch labels",)
    lines = {(line.row, line.statistic): line.values[0] for line in grid.lines}
    assert lines["plain", "measured"] == 0.91
    assert lines["plain", "difference"] == pytest.approx(0.91 - 0.93893)
    # A method that gives no labels of patches is not shown with a number.
    without = plain._replace(patches={})
    assert ("plain", "measured") not in {
        (line.row, line.statistic) for line in fill({"plain": without}, tables=TABLES[3:])[0].lines
    }


def test_all_files_say_the_same(tmp_path):
    undefined = Measured({0: scores(np.nan, 0.7, 0.6, 0.5, 0.7, 0.6, 0.9)}, {})
    grids = fill({"gated": GATED, "phase1": undefined})
    paper_tables.write(tmp_path, Filled(tuple(grids), (0, 3)))
    document = json.loads((tmp_path / "tables.json").read_text())
    assert document["seeds"] == [0, 3]
    table = document["tables"][0]
    rows = {row["row"]: row for row in table["rows"]}
    assert rows["gated"]["published"]["iou"]["NEC"] == 0.79321
    assert rows["phase1"]["measured"]["iou"]["TE"] is None
    assert (rows["gated"]["seeds"], rows["phase1"]["seeds"]) == ([0, 3], [0])
    with (tmp_path / "tables.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    (found,) = [
        line
        for line in lines
        if (line["table"], line["row"], line["statistic"], line["score"])
        == ("I", "gated", "measured", "mIoU")
    ]
    assert float(found["value"]) == pytest.approx(rows["gated"]["measured"]["miou"])
    text = (tmp_path / "tables.txt").read_text()
    assert "Table I. Comparison with other methods" in text
    line = next(line for line in text.splitlines() if line.startswith("phase 2 + gate"))
    assert line.split()[-7:] == [
        ".77704",
        ".79321",
        ".73406",
        ".71980",
        ".75126",
        ".75603",
        ".85701",
    ]
    assert "measured [0]" in text and "measured [0 3]" not in text
    assert "| phase 2 + gate | published | .77704 |" in (tmp_path / "tables.md").read_text()
    assert r"phase 2 + gate & published & .77704 &" in (tmp_path / "tables.tex").read_text()


def test_names_of_classes_are_only_text(tmp_path):
    classes = ("a_b & 50 %", "=SUM(A1)", "<script>x</script>", "mIoU")
    grids = fill({"gated": GATED}, classes=classes)
    paper_tables.write(tmp_path, Filled(tuple(grids), (0, 3)))
    assert r"a\_b \& 50 \%" in (tmp_path / "tables.tex").read_text()
    assert "'=SUM(A1)" in (tmp_path / "tables.csv").read_text()
    assert r"\textless{}script" in (tmp_path / "tables.tex").read_text()
    assert r"\<script\>x" in (tmp_path / "tables.md").read_text()
    row = json.loads((tmp_path / "tables.json").read_text())["tables"][0]["rows"][0]
    assert row["measured"]["iou"]["mIoU"] == pytest.approx(0.6)  # a class of that name
    assert row["measured"]["miou"] == pytest.approx(0.7)
    picture = tmp_path / "confusion.png"
    write_confusion_matrix(picture, np.ones((4, 5), int), classes)
    details = [Details("<b>", picture, {"phase1": picture})]
    filled = Filled(tuple(grids), (0, 3), ("gated, seed 4: <u>",))
    tables_page.write(tmp_path, "<i>", filled, None, details)
    assert "not in the tables: gated, seed 4: <u>" in paper_tables.format_text(filled)
    page = (tmp_path / "tables.html").read_text()
    for text in ("<script>x", "<b>", "<i>", "<u>"):
        assert text not in page.split("<style>")[1].split("</style>")[1]
    assert page.count("data:image/png;base64,") == 2
