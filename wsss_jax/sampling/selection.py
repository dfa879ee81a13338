"""Which patches are kept: measures and thresholds to reasons."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wsss_jax.robust import compute_robust_z

_FEWEST = 20  # patches of a slide from which a patch is compared with them
# Least standard deviations: on a slide whose patches are all alike, no small difference is odd.
_LEAST_SIGMA = {"sharpness": 0.05, "stain": 0.01}


class Rule(NamedTuple):
    """When a patch is dropped.

    Attributes:
      reason: why, in the table.
      column: the measure.
      field: its threshold in `config.quality`.
      sign: 1 drops patches over the threshold, -1 those under it.
    """

    reason: str
    column: str
    field: str
    sign: int


# In the order in which reasons are given; the first one decides on the contact sheet.
ABSOLUTE = (
    Rule("white", "white", "max_white", 1),
    Rule("no tissue", "tissue", "min_tissue", -1),
    Rule("pen", "pen", "max_pen", 1),
    Rule("dark", "dark", "max_dark", 1),
    Rule("blurred", "sharpness", "min_sharpness", -1),
    Rule("duplicate", "nearest", "min_difference", -1),
)
# Compared with the other patches of the slide, in standard deviations.
RELATIVE = (
    Rule("blurred", "sharpness_z", "max_blur_z", -1),
    Rule("over-stained", "stain_z", "max_stain_z", 1),
)
REASONS = tuple(dict.fromkeys(rule.reason for rule in (*ABSOLUTE, *RELATIVE)))


class Selection(NamedTuple):
    """What is dropped of the patches of a slide.

    Attributes:
      measures: column -> (N,) float64, those given and the robust z-scores; nan where unknown.
      reasons: of each patch, why it is dropped; empty if it is kept.
    """

    measures: dict[str, np.ndarray]
    reasons: list[tuple[str, ...]]


def select_patches(
    measures: Mapping[str, np.ndarray], thresholds: Mapping[str, float]
) -> Selection:
    """Says which patches of a slide are dropped, and why.

    The absolute rules come first. Patches that pass them are the ones that all are compared with,
    by robust z-scores: the distance from their median over 1.4826 times their median absolute
    deviation (Iglewicz and Hoaglin 1993). With fewer than 20 of them, there is no comparison.

    Args:
      measures: column -> (N,) floats: those of `quality.MEASURES`, and "nearest".
      thresholds: field of `config.quality` -> value.
    """
    count = len(measures["white"])
    reasons: list[list[str]] = [[] for _ in range(count)]

    def apply(rules: Sequence[Rule], columns: Mapping[str, np.ndarray]) -> None:
        for reason, column, field, sign in rules:
            limit = thresholds[field] * (-1 if column.endswith("_z") and sign < 0 else 1)
            # Comparisons with nan are False.
            for index in np.flatnonzero(sign * (columns[column] - limit) > 0):
                if reason not in reasons[index]:
                    reasons[index].append(reason)

    apply(ABSOLUTE, measures)
    passed = np.array([not given for given in reasons], bool)
    scores = {f"{name}_z": compute_scores(measures[name], passed, name) for name in _LEAST_SIGMA}
    apply(RELATIVE, scores)
    return Selection({**measures, **scores}, [tuple(given) for given in reasons])


def compute_scores(values: np.ndarray, reference: np.ndarray, name: str) -> np.ndarray:
    """Computes robust z-scores.

    Args:
      values: (N,) floats, nan where unknown.
      reference: (N,) bool, the values to compare with.
      name: of the measure, which has a least standard deviation.

    Returns:
      (N,) float64; nan everywhere if there are fewer than 20 to compare with.
    """
    known = values[reference & np.isfinite(values)]
    if len(known) < _FEWEST:
        return np.full(len(values), np.nan)
    return compute_robust_z(values, known, _LEAST_SIGMA[name])
