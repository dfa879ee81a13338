"""Which slides of a cohort need a look."""

import numpy as np
import pytest

from wsss_jax.slides.outputs import attention
from wsss_jax.slides.outputs.attention import Rules

RULES = Rules(min_tissue=1.0, max_uncertain=0.25, outlier_z=3.5, min_slides=10)
CLASSES = ("tumor", "stroma")


def make_summary(tumor=0.5, mm2=10.0, uncertain=None, warnings=(), ratio=None):
    rows = [
        {"class": name, "mm2": share * mm2, "share_of_tissue": share}
        for name, share in (("tumor", tumor), ("excluded in tissue", 1 - tumor))
    ]
    rows.append({"class": "outside tissue", "mm2": 99.0, "share_of_tissue": None})
    summary = {"areas": rows, "warnings": list(warnings), "ratios": {}}
    if ratio is not None:
        summary["ratios"] = {"tumor_stroma_ratio": ratio}
    if uncertain is not None:
        summary["confidence"] = {"threshold": 0.6, "share": uncertain, "classes": {}}
    return summary


def list_reasons(*summaries, rules=RULES):
    named = {str(number): summary for number, summary in enumerate(summaries)}
    reasons, common = attention.list_reasons(named, CLASSES, rules)
    assert list(reasons) == list(named)
    return list(reasons.values()), common


def test_reasons_of_one_slide():
    fine, little, uncertain, unknown, warned = list_reasons(
        make_summary(uncertain=0.25),
        make_summary(mm2=0.987),
        make_summary(uncertain=0.2501),
        make_summary() | {"confidence": None},
        make_summary(warnings=["odd", "strange"]),
    )[0]
    assert fine == unknown == []
    (reason,) = little
    assert (reason.kind, reason.text) == ("little tissue", "0.99 mm² of tissue, less than 1 mm²")
    (reason,) = uncertain
    assert reason.kind == "low confidence"
    assert reason.text == "25.0 % of the area is under 0.6, more than 25.0 %"
    (reason,) = warned
    assert (reason.kind, reason.text) == ("warnings", "2 warnings: odd; strange")


def test_a_slide_without_any_tissue_has_little():
    empty = make_summary()
    for row in empty["areas"]:
        row["share_of_tissue"] = None
    ((reason,),), _ = list_reasons(empty)
    assert reason.text.startswith("0.0 mm² of tissue")


def test_what_all_slides_are_warned_of_is_no_reason_to_look_at_one():
    both, one = ["drawn", "odd"], ["drawn"]
    (first, second), common = list_reasons(make_summary(warnings=both), make_summary(warnings=one))
    assert common == ["drawn"]
    assert [reason.text for reason in first] == ["1 warning: odd"] and second == []
    (alone,), common = list_reasons(make_summary(warnings=one))
    assert [reason.text for reason in alone] == ["1 warning: drawn"] and common == []


def make_cohort(count=12, **odd):
    rng = np.random.default_rng(0)
    usual = [
        make_summary(tumor, ratio=ratio)
        for tumor, ratio in zip(rng.normal(0.5, 0.03, count), rng.normal(0.5, 0.03, count))
    ]
    return [*usual, make_summary(**odd)]


def test_outliers_are_far_from_the_median():
    reasons, _ = list_reasons(*make_cohort(tumor=0.9, ratio=0.1))
    assert not any(reasons[:-1])
    share, ratio = reasons[-1]
    assert share.kind == ratio.kind == "outlier"
    assert share.measure == "tumor" and ratio.measure == "Tumor-stroma ratio"
    assert share.text.startswith("tumor 90.0 %, the median of 13 slides is 5")
    assert "(robust z +" in share.text and "(robust z -" in ratio.text


@pytest.mark.parametrize(("count", "found"), [(8, False), (9, True)])
def test_few_slides_are_not_compared(count, found):
    reasons, _ = list_reasons(*make_cohort(count, tumor=0.9))
    assert bool(reasons[-1]) == found


def test_slides_that_are_all_alike_have_no_outliers_nearby():
    alike = [make_summary(0.5) for _ in range(20)]
    reasons, _ = list_reasons(*alike, make_summary(0.56), make_summary(0.58))
    assert not any(reasons[:-1]) and reasons[-1]


def test_slides_without_a_measure_are_not_compared_by_it():
    reasons, _ = list_reasons(*make_cohort(), make_summary(0.5) | {"areas": []})
    assert [reason.kind for reason in reasons[-1]] == ["little tissue"]


def test_false_alarms_are_as_rare_as_the_configuration_says():
    """Of ten normal values 1.6 % count as outliers."""
    values = np.random.default_rng(0).normal(size=(4000, 10))
    scores = [attention.compute_robust_z(each, each, 0.0) for each in values]
    assert (np.abs(scores) > 3.5).mean() == pytest.approx(0.016, abs=0.003)
