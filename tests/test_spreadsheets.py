import pytest

from wsss_jax import spreadsheets


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_text_that_begins_a_formula_is_made_harmless(start):
    assert spreadsheets.text(f"{start}cmd|' /C calc'!A0") == f"'{start}cmd|' /C calc'!A0"


@pytest.mark.parametrize("name", ["", "tumor", "a=b", "1-2", "'quoted"])
def test_other_text_stays(name):
    assert spreadsheets.text(name) == name
