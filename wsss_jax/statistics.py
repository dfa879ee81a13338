"""Scores over seeds, and bootstrap intervals over test patches or regions: functions of arrays.

A run is one row of an evaluation: a variant's "phase 2" with seed 0, for instance. Its scores are a
vector of C + 4 numbers: the IoU of the C classes, then FwIoU, mIoU, ACC and class ACC. An undefined
score is nan and is left out of means, deviations and intervals.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wsss_jax import metrics

SUMMARY = ("fwiou", "miou", "acc", "class_acc")  # of a vector, after the IoU of the classes


def score(confusion: np.ndarray) -> np.ndarray:
    """Derives the scores of one confusion matrix.

    Args:
      confusion: (C, C + 1) counts.

    Returns:
      (C + 4,) float64.
    """
    scores = metrics.segmentation_scores(confusion)
    return np.array([*scores["iou"], *(scores[name] for name in SUMMARY)])


def name_scores(vector: np.ndarray) -> dict[str, Any]:
    """Names the scores of a vector as `metrics.segmentation_scores` does."""
    classes = len(vector) - len(SUMMARY)
    summary = zip(SUMMARY, vector[classes:].tolist(), strict=True)
    return {"iou": vector[:classes].tolist(), **dict(summary)}


def mean(values: np.ndarray) -> np.ndarray:
    """Averages over the second last axis, the seeds, without what is nan; nan if nothing is left.

    Args:
      values: (..., S, K).

    Returns:
      (..., K) float64.
    """
    count = (~np.isnan(values)).sum(axis=-2)
    total = np.nansum(values, axis=-2)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def standard_deviation(values: np.ndarray) -> np.ndarray:
    """Computes the sample standard deviation (n - 1) over the seeds; nan for fewer than two.

    Args:
      values: (S, K); nan is left out.

    Returns:
      (K,) float64.
    """
    count = (~np.isnan(values)).sum(axis=0)
    squares = np.nansum((values - mean(values)) ** 2, axis=0)
    variance = np.full(values.shape[1], np.nan)
    return np.sqrt(np.divide(squares, count - 1, out=variance, where=count > 1))


def find_units(names: Sequence[str], region: str) -> tuple[np.ndarray, int]:
    """Says which patches are resampled together, because they come from one region.

    Patches of one region resemble each other; an interval that takes them for independent is too
    narrow.

    Args:
      names: N names of patches.
      region: regular expression of a whole name, whose first group is the region. A name that does
        not fit is a unit of its own, and "" makes each patch one.

    Returns:
      (N,) int64: the unit of each patch, 0..U-1 in the order of their first patches; how many units
      are regions, and not single patches that do not fit.
    """
    numbers: dict[tuple[bool, str], int] = {}
    units = []
    for name in names:
        match = re.fullmatch(region, name) if region else None
        key = (True, match[1]) if match and match[1] is not None else (False, name)
        units.append(numbers.setdefault(key, len(numbers)))
    return np.array(units, np.int64), sum(is_region for is_region, _ in numbers)


def sum_by_unit(confusions: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sums the confusion matrices of the patches of each unit.

    Args:
      confusions: (N, C, C + 1) counts.
      units: (N,) integers 0..U-1.

    Returns:
      (U, C, C + 1) int64.
    """
    sums = np.zeros((int(units.max()) + 1, *confusions.shape[1:]), np.int64)
    np.add.at(sums, units, confusions)
    return sums


def resample(runs: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Scores all runs on resampled test sets: U units drawn from the U there are, with replacement.

    The scores come from the summed counts of the drawn units, as those of a test set do, and all
    runs see the same draws, so that their differences are paired (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, chapters 6 and 8). A class that a draw happens to lack has no IoU
    in it, whatever a run predicts, and no share in the mIoU.

    Args:
      runs: (M, U, C, C + 1) counts by run and unit.
      resamples: R.
      seed: of the draws.

    Returns:
      (R, M, C + 4) float64.
    """
    rng = np.random.default_rng(seed)
    count, units, classes, _ = runs.shape
    by_unit = runs.swapaxes(0, 1).reshape(units, -1).astype(np.float64)  # exact below 2**53
    drawn = np.empty((resamples, count, classes + len(SUMMARY)))
    miou = classes + SUMMARY.index("miou")
    for of_runs in drawn:
        times = np.bincount(rng.integers(units, size=units), minlength=units)
        sums = (times.astype(np.float64) @ by_unit).reshape(count, classes, -1)
        for scores, confusion in zip(of_runs, sums, strict=True):
            scores[:] = score(confusion)
            scores[:classes][confusion.sum(axis=1) == 0] = np.nan
            scores[miou] = mean(scores[:classes, None])[0]
    return drawn


def interval(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Computes percentile intervals, the middle `confidence` of the resamples.

    Args:
      values: (R, K), a score of each resample; nan is left out.
      confidence: such as 0.95.

    Returns:
      Lower and upper bounds, (K,) each; nan where nothing is left.
    """
    tail = (1 - confidence) / 2
    bounds = np.full((2, values.shape[1]), np.nan)
    for index, column in enumerate(values.T):
        defined = column[~np.isnan(column)]
        if defined.size:
            bounds[:, index] = np.quantile(defined, [tail, 1 - tail])
    return bounds[0], bounds[1]


class Difference(NamedTuple):
    """How much a variant is over the baseline; vectors (C + 4,) of all scores.

    Attributes:
      seeds: those that both have, over which it is averaged.
      mean: of the differences of the seeds.
      deviation: their standard deviation (n - 1), how far it depends on the seed.
      low: of the bootstrap interval over units, how far it depends on the test patches; nan for a
        class that fewer than two units have, since one of them tells nothing about others.
      high: the other bound.
    """

    seeds: tuple[int, ...]
    mean: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Bootstrap(NamedTuple):
    """How intervals are made: see `resample` and `interval`."""

    resamples: int
    confidence: float
    seed: int


def compare(
    baseline: Mapping[int, np.ndarray], variant: Mapping[int, np.ndarray], bootstrap: Bootstrap
) -> Difference | None:
    """Compares two variants over the seeds that both have, and over resampled units.

    Args:
      baseline: seed -> (U, C, C + 1) counts by unit.
      variant: likewise, of the same units.
      bootstrap: how to make the interval of the mean over the seeds.

    Returns:
      variant - baseline; None if they have no seed in common.
    """
    seeds = tuple(seed for seed in baseline if seed in variant)
    if not seeds:
        return None
    runs = np.stack([of[seed] for of in (variant, baseline) for seed in seeds])
    count = len(seeds)
    scores = np.stack([score(counts.sum(axis=0)) for counts in runs])
    of_seeds = scores[:count] - scores[count:]
    drawn = resample(runs, bootstrap.resamples, bootstrap.seed)
    low, high = interval(mean(drawn[:, :count] - drawn[:, count:]), bootstrap.confidence)
    units_with = (runs[0].sum(axis=-1) > 0).sum(axis=0)  # each class; all runs have one truth
    is_single = np.r_[units_with < 2, np.full(len(SUMMARY), runs.shape[1] < 2)]
    low[is_single] = high[is_single] = np.nan
    return Difference(seeds, mean(of_seeds), standard_deviation(of_seeds), low, high)
