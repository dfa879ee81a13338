"""Agreement figures against other implementations, on random votes, and by hand."""

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from wsss_jax.labels import agreement
from wsss_jax.labels.agreement import MISSING


def draw_votes(seed, people, patches, classes=None, missing=0.2, noise=0.2):
    """People who see the same truth and err by themselves."""
    rng = np.random.default_rng(seed)
    shape = (patches,) if classes is None else (patches, classes)
    truth = rng.integers(0, 2, shape)
    votes = np.where(rng.random((people, *shape)) < noise, 1 - truth, truth)
    votes[rng.random(votes.shape) < missing] = MISSING
    return votes


@pytest.mark.parametrize("seed", range(5))
def test_kappa_of_a_pair_is_that_of_scikit_learn(seed):
    first, second = draw_votes(seed, 2, 300)
    both = (first != MISSING) & (second != MISSING)
    expected = cohen_kappa_score(first[both], second[both])
    assert agreement.cohen_kappa(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("people", [2, 3, 6])
def test_kappa_of_fleiss_is_that_of_statsmodels(people):
    votes = draw_votes(people, people, 400, missing=0.1)
    complete = votes[:, (votes != MISSING).all(axis=0)]
    table, _ = inter_rater.aggregate_raters(complete.T)
    expected = inter_rater.fleiss_kappa(table, method="fleiss")
    assert agreement.fleiss_kappa(votes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("people", [2, 3, 5])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_alpha_is_that_of_krippendorff(people, missing):
    votes = draw_votes(people, people, 200, missing=missing)
    expected = krippendorff.alpha(
        np.where(votes == MISSING, np.nan, votes), level_of_measurement="nominal"
    )
    assert agreement.krippendorff_alpha(votes) == pytest.approx(expected, abs=1e-12)


def test_consensus_counts_labels_on_which_all_agree():
    votes = np.array(
        [
            [[1, 0], [1, 1], [0, 0], [MISSING, MISSING]],
            [[1, 0], [1, 0], [MISSING, MISSING], [MISSING, MISSING]],
            [[1, 0], [0, 1], [0, 1], [1, 1]],
        ]
    )
    # Patch 0: both labels; 1: none; 2: the first class; 3: one person alone.
    assert agreement.measure_consensus(votes) == 3 / 6


def test_what_is_undefined_is_nan():
    nobody = np.full((3, 4), MISSING)
    alone = np.array([[1, 0, 1, 1], [MISSING] * 4, [MISSING] * 4])
    for votes in (nobody, alone, np.ones((3, 4), int)):  # the last: chance explains all of it
        assert np.isnan(agreement.cohen_kappa(votes[0], votes[1]))
        assert np.isnan(agreement.fleiss_kappa(votes))
        assert np.isnan(agreement.krippendorff_alpha(votes))
    assert np.isnan(agreement.fleiss_kappa(np.ones((1, 4), int)))
    assert np.isnan(agreement.measure_consensus(alone[..., None]))


def test_confusions_say_which_classes_are_taken_for_each_other():
    one = [[1, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1]]
    other = [[0, 1, 0], [0, 1, 1], [0, 1, 0], [MISSING] * 3]
    counts = agreement.count_confusions(np.array([one, other]))
    np.testing.assert_array_equal(counts, [[2, 2, 0], [2, 2, 0], [0, 0, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_confusions_equal_counting_one_by_one(seed):
    votes = draw_votes(seed, 4, 30, classes=5)
    expected = np.zeros((5, 5), int)
    for a in range(4):
        for b in range(a):
            for x, y in zip(votes[a], votes[b]):
                if MISSING in x or MISSING in y:
                    continue
                for c in range(5):
                    for d in range(5):
                        one_way = x[c] == 1 and y[c] == 0 and x[d] == 0 and y[d] == 1
                        back = y[c] == 1 and x[c] == 0 and y[d] == 0 and x[d] == 1
                        expected[c, d] += (x[c] != y[c]) if c == d else one_way + back
    np.testing.assert_array_equal(agreement.count_confusions(votes), expected)
