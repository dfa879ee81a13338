"""Means over seeds and bootstrap intervals: by hand, by brute force, and on data of known truth."""

import numpy as np
import pytest

from wsss_jax import metrics, statistics
from wsss_jax.statistics import Bootstrap

REGION = r"(.+)_x\d{5,}_y\d{5,}"  # as in configs/base.py
ACC = -2  # of a vector of scores


def draw(rng: np.random.Generator, *shape: int, classes: int = 3) -> np.ndarray:
    """Counts in which the right class is the most frequent."""
    counts = rng.integers(0, 50, (*shape, classes, classes + 1))
    return counts + 100 * np.eye(classes, classes + 1, dtype=np.int64)


def binary(right: np.ndarray, pixels: int = 100) -> np.ndarray:
    """Patches (N, 2, 3) of one class each, of which `right` (N,) of all pixels are right."""
    counts = np.zeros((len(right), 2, 3), np.int64)
    for index, count in enumerate(right):
        true = index % 2
        counts[index, true, true], counts[index, true, 1 - true] = count, pixels - count
    return counts


def test_a_vector_holds_the_scores_of_the_metrics():
    counts = draw(np.random.default_rng(0))
    named = statistics.name_scores(statistics.score(counts))
    assert named == metrics.segmentation_scores(counts)


def test_mean_and_deviation_by_hand():
    nan = np.nan
    values = np.array([[1.0, 2.0, nan, nan], [2.0, nan, nan, nan], [6.0, 4.0, 3.0, nan]])
    np.testing.assert_array_equal(statistics.mean(values), [3, 3, 3, nan])
    expected = [np.sqrt((4 + 1 + 9) / 2), np.sqrt(2), nan, nan]
    np.testing.assert_allclose(statistics.standard_deviation(values), expected)
    assert np.isnan(statistics.standard_deviation(values[:1])).all()
    np.testing.assert_array_equal(
        statistics.mean(np.stack([values, values + 1]))[1], [4, 4, 4, nan]
    )


def test_patches_of_a_region_are_one_unit():
    names = ["a_x00000_y00000", "b_x00000_y00096", "a_x00096_y00000", "c_x1_y1", "c_x2_y1"]
    units, regions = statistics.find_units(names, REGION)
    assert (units.tolist(), regions) == ([0, 1, 0, 2, 3], 2)
    units, regions = statistics.find_units(names, "")
    assert (units.tolist(), regions) == ([0, 1, 2, 3, 4], 0)
    units, regions = statistics.find_units(names, r"([ab]).*|(c).*")  # c: no first group
    assert (units.tolist(), regions) == ([0, 1, 0, 2, 3], 2)
    # A patch that is named as a region is, but does not fit, is not of that region.
    assert statistics.find_units(["a_x00000_y00000", "a"], REGION)[0].tolist() == [0, 1]


def test_units_are_summed():
    counts = draw(np.random.default_rng(1), 5)
    sums = statistics.sum_by_unit(counts.astype(np.int32), np.array([0, 1, 0, 2, 1]))
    assert sums.dtype == np.int64
    np.testing.assert_array_equal(sums, [counts[0] + counts[2], counts[1] + counts[4], counts[3]])


def test_resamples_are_what_lists_of_units_give():
    runs = draw(np.random.default_rng(2), 2, 6)
    drawn = statistics.resample(runs, 5, seed=7)
    rng = np.random.default_rng(7)
    for of_all in drawn:
        chosen = rng.integers(6, size=6)
        for run, scores in zip(runs, of_all, strict=True):
            total = np.zeros((3, 4), np.int64)
            for unit in chosen:
                total += run[unit]
            np.testing.assert_array_equal(scores, statistics.score(total))
    np.testing.assert_array_equal(drawn, statistics.resample(runs, 5, seed=7))
    assert (drawn != statistics.resample(runs, 5, seed=8)).any()


def test_an_interval_is_the_middle_of_what_is_defined():
    values = np.stack([np.arange(101.0), np.full(101, np.nan), np.r_[np.full(80, np.nan), 0:21]], 1)
    low, high = statistics.interval(values, 0.9)
    np.testing.assert_allclose(low, [5, np.nan, 1])
    np.testing.assert_allclose(high, [95, np.nan, 19])


def test_equal_variants_do_not_differ():
    counts = draw(np.random.default_rng(3), 2, 8)
    runs = dict(enumerate(counts))
    difference = statistics.compare(runs, dict(runs), Bootstrap(50, 0.95, 0))
    for vector in difference[1:]:
        np.testing.assert_array_equal(vector, 0)


def test_an_equal_shift_of_all_units_is_found_in_every_resample():
    right = np.random.default_rng(4).integers(30, 60, 10)
    baseline, variant = {0: binary(right)}, {0: binary(right + 20)}
    difference = statistics.compare(baseline, variant, Bootstrap(50, 0.95, 0))
    for vector in (difference.mean, difference.low, difference.high):
        assert vector[ACC] == pytest.approx(0.2)
    assert (difference.low[:2] > 0).all()  # the IoU of both classes
    assert np.isnan(difference.deviation).all()  # of one seed
    back = statistics.compare(variant, baseline, Bootstrap(50, 0.95, 0))
    np.testing.assert_allclose(back.low, -difference.high)


def test_only_seeds_that_both_have_are_compared():
    rng = np.random.default_rng(5)
    right = rng.integers(30, 60, (4, 10))
    one = {seed: binary(right[seed]) for seed in (0, 1, 2)}
    other = {seed: binary(right[seed] + 10 * seed) for seed in (3, 2, 1)}
    difference = statistics.compare(one, other, Bootstrap(20, 0.95, 0))
    assert difference.seeds == (1, 2)
    assert difference.mean[ACC] == pytest.approx(0.15)
    assert difference.deviation[ACC] == pytest.approx(np.std([0.1, 0.2], ddof=1))
    assert statistics.compare({0: one[0]}, other, Bootstrap(20, 0.95, 0)) is None


def test_regions_are_resampled_and_not_patches():
    """Copies add no knowledge: the interval over regions stays, that over patches halves."""
    rng = np.random.default_rng(6)
    one, other = (binary(rng.integers(20, 80, 16)) for _ in range(2))
    settings = Bootstrap(400, 0.95, 0)
    single = statistics.compare({0: one}, {0: other}, settings)
    copies, names = [np.tile(each, (4, 1, 1)) for each in (one, other)], []
    for copy in range(4):
        names += [f"r{region}_x{copy:05d}_y00000" for region in range(16)]
    by_region, by_patch = (
        statistics.compare(*({0: statistics.sum_by_unit(each, units)} for each in copies), settings)
        for units in (statistics.find_units(names, pattern)[0] for pattern in (REGION, ""))
    )
    np.testing.assert_allclose(by_region.low, single.low)
    np.testing.assert_allclose(by_region.high, single.high)
    ratio = (by_patch.high - by_patch.low)[ACC] / (single.high - single.low)[ACC]
    assert 0.35 < ratio < 0.65


def test_a_class_that_few_units_have():
    """Draws without it say nothing of it; with one unit there is no interval, with two there is."""
    counts = np.zeros((2, 8, 3, 4), np.int64)
    counts[:, :, 0, 0] = counts[:, :, 1, 1] = 100
    counts[:, 0, 2, 2], counts[:, 0, 2, 1] = (50, 80), (50, 20)
    counts[:, 3, 0, 2] = 5  # predicted in a unit that has none of it
    one, other = ({0: each} for each in counts)
    difference = statistics.compare(one, other, Bootstrap(200, 0.95, 0))
    assert difference.mean[2] == pytest.approx(80 / 105 - 50 / 105)
    assert np.isnan(difference.low[2]) and np.isnan(difference.high[2])
    assert difference.low[0] == difference.high[0] == 0

    drawn = statistics.resample(counts, 200, seed=0)
    lacks = np.isnan(drawn[:, 0, 2])
    assert 0.2 < lacks.mean() < 0.5  # (7 / 8) ** 8 = .34
    miou = 3 + statistics.SUMMARY.index("miou")
    np.testing.assert_allclose(drawn[lacks, 0, miou], drawn[lacks, 0, :2].mean(axis=1))

    counts[:, 5, 2] = counts[:, 0, 2]
    difference = statistics.compare({0: counts[0]}, {0: counts[1]}, Bootstrap(200, 0.95, 0))
    assert 0.2 < difference.low[2] <= difference.mean[2] <= difference.high[2] <= 0.31
    single = statistics.compare({0: counts[0, :1]}, {0: counts[1, :1]}, Bootstrap(20, 0.95, 0))
    assert np.isnan(single.low).all() and not np.isnan(single.mean).any()


def test_the_difference_is_the_mean_of_what_both_seeds_have():
    """A class without true pixels: predicted by one run of each variant, of another seed."""
    counts = np.zeros((2, 2, 4, 3, 4), np.int64)  # variant, seed, unit
    counts[..., 0, 0] = counts[..., 1, 1] = 100
    counts[0, 0, :, 0, 2] = counts[1, 1, :, 0, 2] = 1
    difference = statistics.compare(
        dict(enumerate(counts[0])), dict(enumerate(counts[1])), Bootstrap(20, 0.95, 0)
    )
    assert np.isnan(difference.mean[2]) and np.isnan(difference.deviation[2])


def test_agrees_with_scipy():
    """Units of equal size: the difference of ACC is the mean of the units' differences."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(7)
    right = rng.integers(20, 80, (2, 2, 40))  # variant, seed, unit
    one, other = ({seed: binary(of[seed]) for seed in range(2)} for of in right)
    difference = statistics.compare(one, other, Bootstrap(2000, 0.9, 1))
    paired = (right[1] - right[0]).mean(axis=0) / 100
    expected = stats.bootstrap(
        (paired,), np.mean, confidence_level=0.9, n_resamples=9999, method="percentile", rng=rng
    ).confidence_interval
    assert difference.mean[ACC] == pytest.approx(paired.mean())
    width = expected.high - expected.low
    assert difference.low[ACC] == pytest.approx(expected.low, abs=0.06 * width)
    assert difference.high[ACC] == pytest.approx(expected.high, abs=0.06 * width)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """150 test sets of 30 units, a true difference of .1 of the pixels that are right."""
    rng, held = np.random.default_rng(8), 0
    for number in range(150):
        ease = rng.normal(50, 12, 30)  # of the units, for both variants
        one, other = (
            {0: binary(np.clip(ease + shift + rng.normal(0, 8, 30), 0, 100).round().astype(int))}
            for shift in (0, 10)
        )
        difference = statistics.compare(one, other, Bootstrap(150, 0.9, number))
        held += bool(difference.low[ACC] <= 0.1 <= difference.high[ACC])
    assert 0.8 < held / 150 < 0.96  # .9 and three standard errors, less what 30 units cost
