"""Which slides of a cohort need a look, and why."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.report.cohort_page import Reason
from wsss_jax.report.slide_pages import format_share
from wsss_jax.robust import compute_robust_z
from wsss_jax.slides.outputs.areas import RATIOS, sum_tissue
from wsss_jax.wording import format_count

FAILED = "failed"
LITTLE = "little tissue"
UNCERTAIN = "low confidence"
WARNINGS = "warnings"
OUTLIER = "outlier"
UNCERTAIN_AREA = "Uncertain area"  # among measures
# Least standard deviation of shares: where all slides are alike, no small difference is odd.
_LEAST_SIGMA = 0.02

Summary = Mapping[str, Any]


class Rules(NamedTuple):
    """When a slide needs a look; the fields of `config.attention`.

    Attributes:
      min_tissue: square millimeters; less is little.
      max_uncertain: share of the area under the confidence threshold; more is much.
      outlier_z: standard deviations from the median of the slides.
      min_slides: fewer finished slides are not compared.
    """

    min_tissue: float
    max_uncertain: float
    outlier_z: float
    min_slides: int


def list_reasons(
    summaries: Mapping[str, Summary], classes: Collection[str], rules: Rules
) -> tuple[dict[str, list[Reason]], list[str]]:
    """Lists why each finished slide needs a look.

    Warnings that all of several slides have are no reason to look at one of them.

    Args:
      summaries: of the finished slides, by name.
      classes: names of the classes.
      rules: when a slide needs one.

    Returns:
      name -> reasons, empty for a slide that needs none; and the warnings of all slides.
    """
    common = _list_common_warnings(summaries)
    reasons: dict[str, list[Reason]] = {}
    for name, summary in summaries.items():
        reasons[name] = given = []
        if (tissue := sum_tissue(summary["areas"])) < rules.min_tissue:
            text = f"{tissue:#.2g} mm² of tissue, less than {rules.min_tissue:g} mm²"
            given.append(Reason(LITTLE, text))
        if (confidence := summary.get("confidence")) and confidence["share"] is not None:
            share, threshold = confidence["share"], confidence["threshold"]
            if share > rules.max_uncertain:
                text = (
                    f"{format_share(share)} of the area is under {threshold:g}, more than "
                    f"{format_share(rules.max_uncertain)}"
                )
                given.append(Reason(UNCERTAIN, text))
        if own := [text for text in summary["warnings"] if text not in common]:
            given.append(Reason(WARNINGS, f"{format_count(len(own), 'warning')}: {'; '.join(own)}"))
    for name, reason in _find_outliers(summaries, classes, rules):
        reasons[name].append(reason)
    return reasons, common


def _list_common_warnings(summaries: Mapping[str, Summary]) -> list[str]:
    if len(summaries) < 2:
        return []
    first, *others = (summary["warnings"] for summary in summaries.values())
    return [text for text in first if all(text in warnings for warnings in others)]


def measure(summary: Summary, classes: Collection[str]) -> dict[str, float | None]:
    """Returns what slides are compared by, each 0..1 or None where undefined.

    These are the shares of the classes in the tissue, the ratios, and the uncertain share.
    """
    shares = {
        row["class"]: row["share_of_tissue"] for row in summary["areas"] if row["class"] in classes
    }
    ratios = {RATIOS[key].title: value for key, value in summary["ratios"].items()}
    confidence = summary.get("confidence")
    return {**shares, **ratios, **({UNCERTAIN_AREA: confidence["share"]} if confidence else {})}


def _find_outliers(
    summaries: Mapping[str, Summary], classes: Collection[str], rules: Rules
) -> list[tuple[str, Reason]]:
    """Finds the slides that differ from the others: (name, reason), by robust z-scores."""
    found = []
    measures = [measure(summary, classes) for summary in summaries.values()]
    for title in dict.fromkeys(title for each in measures for title in each):
        given = [each.get(title) for each in measures]
        values = np.array([np.nan if value is None else value for value in given], np.float64)
        known = values[np.isfinite(values)]
        if len(known) < rules.min_slides:
            continue
        scores = compute_robust_z(values, known, _LEAST_SIGMA)
        middle = float(np.median(known))
        for name, value, score in zip(summaries, values.tolist(), scores.tolist()):
            if abs(score) > rules.outlier_z:
                text = (
                    f"{title} {format_share(value)}, the median of {len(known)} slides is "
                    f"{format_share(middle)} (robust z {score:+.1f})"
                )
                found.append((name, Reason(OUTLIER, text, title)))
    return found
