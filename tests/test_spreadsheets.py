import pytest

from wsss_jax import spreadsheets


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_text_that_would_start_a_formula_is_escaped(start):
    assert spreadsheets.escape_text(f"{start}cmd|' /C calc'!A0") == f"'{start}cmd|' /C calc'!A0"


@pytest.mark.parametrize("name", ["", "tumor", "a=b", "1-2", "'quoted"])
def test_other_text_is_unchanged(name):
    assert spreadsheets.escape_text(name) == name


def test_separators_of_other_programs_are_quoted(tmp_path):
    rows = [["slide", "class"], ["x;=1+1;y", "0.5"], ["a\tb", None], ["a b", 1]]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        spreadsheets.write_rows(file, rows)
    text = (tmp_path / "a.csv").read_text()
    assert text.splitlines() == ["slide,class", '"x;=1+1;y","0.5"', '"a\tb",""', "a b,1"]
