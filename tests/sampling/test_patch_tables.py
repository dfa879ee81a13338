"""The tables of a folder of patches."""

import math

import pytest

from wsss_jax.errors import InputError
from wsss_jax.sampling import tables
from wsss_jax.sampling.tables import PatchRow, SlideRow

MEASURES = {column: number / 7 for number, column in enumerate(tables.COLUMNS)}
PATCH = PatchRow(
    *("patches/a/a_x00010_y00020.png", "a", "P1", "train", 10, 20, 448.9, 1.0, True, ""),
    MEASURES,
)
SLIDE = SlideRow("a", "/slides/a.svs", "P1", "train", 0.499, 0.499, 800, 700, "", "")


def test_patches_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "patches.csv"
    formula = PATCH._replace(slide="=a", patient="=x", kept=False, reason="white + pen")
    unknown = PATCH._replace(measures=MEASURES | {"stain_z": math.nan}, slide='a,"b;ä')
    tables.write_patches(path, [PATCH, formula, unknown])
    assert ",'=a," in path.read_text("utf-8-sig")  # no formula to a spreadsheet
    read = tables.read_patches(path)
    for row, expected in zip(read, [PATCH, formula, unknown], strict=True):
        assert row[:-1] == expected[:-1]
        assert row.measures == pytest.approx(expected.measures, rel=1e-4, nan_ok=True)


def test_slides_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "slides.csv"
    failed = SlideRow("b", "/s/\udce4.svs", "b", "val", math.nan, math.nan, 0, 0, "", "cut; short")
    tables.write_slides(path, [SLIDE, failed])
    first, second = tables.read_slides(path)
    assert first == SLIDE and second.file == failed.file and math.isnan(second.mpp0)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("slide,", "slid,", r"slides\.csv:1: the column slide is missing"),
        (",train,", ",trian,", r"slides\.csv: the split 'trian' of a; write train, val or test"),
        (",800,", ",many,", r"slides\.csv:2: patches is 'many'; give a whole number"),
        (",0.499,800", ",half,800", r"slides\.csv:2: mpp0_down is 'half'; give a number"),
        (",800,700,,", "", r"slides\.csv:2: another number of cells"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, before, after, words):
    path = tmp_path / "slides.csv"
    tables.write_slides(path, [SLIDE])
    text = path.read_text("utf-8-sig")
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=words) as caught:
        tables.read_slides(path)
    assert "\n" not in str(caught.value)


def test_patches_are_named_by_path_or_name(tmp_path):
    path = tmp_path / "keep.csv"
    assert tables.read_keep(path) == {}
    path.write_text("patch,keep,why\ndropped/a/a_x1_y2.png,1,fine\na_x3_y4.png,0,\na_x5_y6, 1 ,\n")
    assert tables.read_keep(path) == {"a_x1_y2": True, "a_x3_y4": False, "a_x5_y6": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patch;keep\na;1\n", r"keep\.csv:1: the column patch is missing"),
        ("patch,keep\na,yes\n", r"keep\.csv:2: keep is 'yes'; give 1 or 0"),
        ("patch,keep\na,1\nb/a.png,0\n", r"keep\.csv: a is to be kept and dropped; keep one"),
        ("patch,keep\na\n", r"keep\.csv:2: another number of cells"),
    ],
)
def test_a_bad_list_of_decisions_is_one_line(tmp_path, text, words):
    path = tmp_path / "keep.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        tables.read_keep(path)
