import numpy as np
import pytest

from wsss_jax.errors import InputError
from wsss_jax.parity import golden, judgment

FLOAT32 = judgment.Judgment(1, "float32", "float32")


def _row(computed, recorded):
    expected = {"forward/b2": golden.record_whole(recorded)}
    (row,) = judgment.compare(expected, {"forward/b2": computed}, FLOAT32)
    return row


def test_a_difference_is_a_share_of_the_largest_value():
    recorded = np.array([[100.0, -200.0]], np.float32)
    row = _row(recorded + np.float32([[1e-3, 0]]), recorded)
    assert row.difference == pytest.approx(1e-3, rel=0.01) and row.share < row.tolerance
    assert row.verdict == "equal" and row.shape == (1, 2)
    row = _row(recorded + np.float32([[0, 3e-3]]), recorded)
    assert row.share == pytest.approx(1.5e-5, rel=0.01) and row.verdict == "DIFFERS"
    assert row._replace(rounding=1e-5).verdict == "rounding"
    assert row._replace(rounding=1e-6).verdict == "DIFFERS"
    assert row._replace(share=0.6, rounding=1.0).verdict == "DIFFERS"


def test_rounding_explains_what_it_does_and_no_more():
    rates = np.float32([1, 2])

    def compute(weights):
        # Ill-conditioned in one tensor, not at all in the others.
        value = weights["w"]
        steep = 1e4 * (value - np.float32(1)) + 1
        return {"grad/a": steep, "grad/b": value, "grad/c": value, "train/learning_rates": rates}

    state_dict = {"w": np.ones(50, np.float32)}
    computed = compute(state_dict)
    other = {name: value * np.float32(1.002) for name, value in computed.items()}
    expected = {name: golden.record_whole(value) for name, value in other.items()}
    rows = judgment.compare(expected, computed, FLOAT32)
    assert {row.verdict for row in rows} == {"DIFFERS"}
    rounding = judgment.measure_rounding(compute, state_dict, computed, expected, "float32")
    rows = [row._replace(rounding=rounding[row.name]) for row in rows]
    assert [row.verdict for row in rows] == ["rounding", "DIFFERS", "DIFFERS", "DIFFERS"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_differs(value):
    assert _row(np.array([value]), np.array([1.0])).verdict == "DIFFERS"
    assert _row(np.array([1.0]), np.array([value])).verdict == "DIFFERS"


def test_label_maps_are_compared_by_pixels():
    recorded = np.zeros((100, 100), np.uint8)
    computed = recorded.copy()
    computed[0, :10] = 3
    assert _row(computed, recorded).verdict == "equal" and _row(computed, recorded).difference == 10
    computed[0, 10] = 1
    assert _row(computed, recorded).verdict == "DIFFERS"


def test_a_sample_is_compared_where_it_was_taken():
    whole = np.arange(24.0).reshape(2, 3, 4)
    recorded = golden.Recorded((2, 3, 4), np.array([5.0, 7.0]), np.array([5, 7]), 23.0)
    other = whole.copy()
    other[0, 0, 0] = 100  # not in the sample
    (row,) = judgment.compare({"grad/a": recorded}, {"grad/a": other}, FLOAT32)
    assert row.difference == 0
    other[0, 1, 1] += 1
    (row,) = judgment.compare({"grad/a": recorded}, {"grad/a": other}, FLOAT32)
    assert row.share == pytest.approx(1 / 23)


@pytest.mark.parametrize("computed", [{}, {"forward/b2": np.zeros(3)}])
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(computed):
    with pytest.raises(InputError, match="forward/b2 has the shape"):
        judgment.compare({"forward/b2": golden.record_whole(np.zeros(2))}, computed, FLOAT32)


@pytest.mark.parametrize(
    ("precisions", "first_words", "coarser"),
    [
        (("float64", "float64"), "exact: float64 against float64, tolerance 1e-10", "float64"),
        (("float32", "float32"), "within rounding: float32 against float32", "float32"),
        (("float64", "float32"), "within rounding: float64 against float32", "float32"),
        (("bfloat16", "float64"), "within rounding: bfloat16 against float64", "bfloat16"),
    ],
)
def test_only_float64_on_both_sides_is_judged_exactly(precisions, first_words, coarser):
    judged = judgment.Judgment(1, *precisions)
    assert judged.describe().startswith(first_words) and "\n" not in judged.describe()
    assert judged.is_exact == first_words.startswith("exact") and judged.coarser == coarser
    expected = {"grad/a": golden.record_whole(np.ones(3))}
    (row,) = judgment.compare(expected, {"grad/a": np.full(3, 1 + 1e-8)}, judged)
    assert row.verdict == ("DIFFERS" if judged.is_exact else "equal")
