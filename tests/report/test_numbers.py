import numpy as np

from wsss_jax.report import numbers
from wsss_jax.report.numbers import Place


def test_numbers_lie_in_their_regions():
    labels = np.full((60, 90), 2)
    labels[:, :30] = 0
    labels[20:50, 40:80] = 1
    places = numbers.place_numbers(labels, 2, side=10)
    assert {place.value for place in places} == {0, 1}
    assert all(labels[place.y, place.x] == place.value for place in places)
    assert numbers.place_numbers(labels, 2, side=10, per_class=1) == [places[0], places[-1]]


def test_large_regions_get_several_numbers_and_specks_none():
    labels = np.zeros((100, 400), np.uint8)
    labels[3:6, 3:6] = 1  # a box of 12 would hide it
    places = numbers.place_numbers(labels, 2, side=12)
    assert [place.value for place in places].count(0) > 2 and Place(1, 4, 4) not in places
    assert len(places) <= numbers.PER_CLASS
    assert 1 in {place.value for place in numbers.place_numbers(labels, 2, side=4)}


def test_boxes_do_not_cover_each_other():
    labels = np.random.default_rng(0).integers(0, 4, (6, 8)).repeat(48, 0).repeat(48, 1)
    places = numbers.place_numbers(labels, 4, side=20)
    assert len(places) > 4
    for index, one in enumerate(places):
        for other in places[:index]:
            assert max(abs(one.x - other.x), abs(one.y - other.y)) > 20


def test_nothing_but_background_has_no_number():
    assert numbers.place_numbers(np.full((5, 5), 3), 3, side=2) == []
