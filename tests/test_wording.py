import pytest

from wsss_jax import wording


def test_one_is_singular():
    assert [wording.format_count(n, "tile") for n in (0, 1, 1234)] == [
        "0 tiles",
        "1 tile",
        "1,234 tiles",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0347, "0.035"),
        (0.35, "0.35"),
        (5.46, "5.5"),
        (9.96, "10"),
        (123.4, "120"),
        (3449, "3,400"),
    ],
)
def test_rates_have_two_digits(value, text):
    assert wording.format_two_digits(value) == text
