"""Measures and thresholds to reasons."""

import numpy as np
import pytest

from configs import base_slides
from wsss_jax.sampling import quality, selection, tables

THRESHOLDS = base_slides.sample("s", "o").quality.to_dict()


def make_measures(count: int) -> dict[str, np.ndarray]:
    """Measures of good patches, which differ a little."""
    spread = np.linspace(-1, 1, count)
    good = {"white": 0.2, "tissue": 0.8, "pen": 0.0, "dark": 0.0, "nearest": 50.0}
    return {column: np.full(count, value) for column, value in good.items()} | {
        "sharpness": 1.6 + 0.1 * spread,
        "stain": 0.2 + 0.02 * spread,
    }


def test_good_patches_are_kept():
    chosen = selection.select_patches(make_measures(30), THRESHOLDS)
    assert chosen.reasons == [()] * 30
    assert chosen.measures.keys() == set(tables.COLUMNS)


@pytest.mark.parametrize("rule", selection.ABSOLUTE, ids=lambda rule: rule.field)
def test_a_measure_beyond_its_threshold_is_a_reason(rule):
    """Also on a slide with few patches."""
    thresholds = THRESHOLDS | {"max_blur_z": 1e6}
    for count in (3, 30):
        measures = make_measures(count)
        measures[rule.column][1] = thresholds[rule.field]
        assert selection.select_patches(measures, thresholds).reasons[1] == ()
        measures[rule.column][1] += 0.01 * rule.sign
        assert selection.select_patches(measures, thresholds).reasons[1] == (rule.reason,)


@pytest.mark.parametrize(("column", "sign"), [("sharpness", -1), ("stain", 1)])
def test_a_patch_unlike_the_others_of_its_slide_is_a_reason(column, sign):
    reason = {"sharpness": "blurred", "stain": "over-stained"}[column]
    measures = make_measures(40)
    measures[column][5] += sign * 0.3
    chosen = selection.select_patches(measures, THRESHOLDS)
    assert chosen.reasons[5] == (reason,) and sum(map(bool, chosen.reasons)) == 1
    score = chosen.measures[f"{column}_z"][5]
    others = np.delete(measures[column], 5)
    sigma = 1.4826 * np.median(np.abs(others - np.median(others)))
    assert score == pytest.approx((measures[column][5] - np.median(others)) / sigma, rel=0.05)
    measures[column][5] -= sign * 0.6  # sharper or paler than the others is no fault
    assert not any(selection.select_patches(measures, THRESHOLDS).reasons)


def test_dropped_patches_are_not_compared_with():
    """Half of the slide is out of focus: the other half is not too sharp, nor is it the norm."""
    measures = make_measures(60)
    measures["sharpness"][:40] = 0.5
    measures["sharpness"][59] = 1.2
    chosen = selection.select_patches(measures, THRESHOLDS)
    assert chosen.reasons[:40] == [("blurred",)] * 40
    assert chosen.reasons[59] == ("blurred",) and chosen.reasons[45] == ()


def test_few_patches_are_not_compared():
    measures = make_measures(10)
    measures["stain"][0] = 0.9
    chosen = selection.select_patches(measures, THRESHOLDS)
    assert not any(chosen.reasons) and np.isnan(chosen.measures["stain_z"]).all()


def test_patches_that_are_all_alike_have_a_least_spread():
    measures = make_measures(30)
    measures["stain"][:] = 0.2
    measures["stain"][3] = 0.205
    assert not any(selection.select_patches(measures, THRESHOLDS).reasons)


def test_unknown_measures_are_no_reason():
    measures = make_measures(30)
    measures["stain"][0] = np.nan
    assert selection.select_patches(measures, THRESHOLDS).reasons[0] == ()


def test_a_patch_may_have_several_reasons():
    measures = make_measures(30)
    measures["white"][2], measures["pen"][2] = 0.95, 0.5
    assert selection.select_patches(measures, THRESHOLDS).reasons[2] == ("white", "pen")


def test_every_measure_is_used_or_in_the_table():
    used = {rule.column for rule in (*selection.ABSOLUTE, *selection.RELATIVE)}
    assert {*quality.MEASURES, "nearest"} - {"stain"} <= used
    fields = {rule.field for rule in (*selection.ABSOLUTE, *selection.RELATIVE)}
    assert fields == THRESHOLDS.keys()
