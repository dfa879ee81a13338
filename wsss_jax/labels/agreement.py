"""How far annotators agree: functions of arrays of votes.

Votes are (P, N, C) integers for P people, N patches and C classes: 1 the class is there, 0 it is
not, and `MISSING` where a person has not answered, or could not tell. What is undefined is nan.
"""

import itertools

import numpy as np

MISSING = -1


def measure_consensus(votes: np.ndarray) -> float:
    """Computes the consensus of Table V: labels on which all agree / all labels.

    A label is the answer for one class of one patch. It counts where at least two people gave it.

    Args:
      votes: (P, N, C).

    Returns:
      0 to 1; nan without labels of two people.
    """
    answered = votes != MISSING
    counted = answered.sum(axis=0) >= 2
    yes = (votes == 1).any(axis=0)
    no = (votes == 0).any(axis=0)
    return _divide(int((counted & ~(yes & no)).sum()), int(counted.sum()))


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Computes Cohen's kappa (1960, eq. 1) of two people for one class.

    Args:
      first: (N,) votes of one person.
      second: (N,) votes of the other; patches that either has not answered are left out.

    Returns:
      At most 1; nan without common patches, or where chance alone gives full agreement.
    """
    both = (first != MISSING) & (second != MISSING)
    a, b = first[both], second[both]
    total = len(a)
    observed = _divide(int((a == b).sum()), total)
    expected = sum(
        _divide(int((a == value).sum()), total) * _divide(int((b == value).sum()), total)
        for value in (0, 1)
    )
    return _divide(observed - expected, 1 - expected)


def fleiss_kappa(votes: np.ndarray) -> float:
    """Computes the kappa of Fleiss (1971, eq. 7) for one class.

    It is defined for patches with the same number of votes: those that all people have answered.

    Args:
      votes: (P, N).

    Returns:
      At most 1; nan for fewer than two people, without such patches, or where chance alone gives
      full agreement.
    """
    people = len(votes)
    complete = votes[:, (votes != MISSING).all(axis=0)]
    if people < 2 or not complete.size:
        return float("nan")
    yes = complete.sum(axis=0)
    counts = np.stack([people - yes, yes], axis=1)  # (patches, 2)
    agreeing = (counts * (counts - 1)).sum(axis=1) / (people * (people - 1))
    shares = counts.sum(axis=0) / counts.sum()
    expected = float((shares**2).sum())
    return _divide(float(agreeing.mean()) - expected, 1 - expected)


def krippendorff_alpha(votes: np.ndarray) -> float:
    """Computes Krippendorff's alpha for nominal values (2011, section C) for one class.

    Patches may have any number of votes; those with fewer than two do not count.

    Args:
      votes: (P, N).

    Returns:
      At most 1; nan where no patch has two votes, or all votes are the same.
    """
    counts = np.stack([(votes == value).sum(axis=0) for value in (0, 1)], axis=1)
    pairable = counts.sum(axis=1) >= 2
    counts = counts[pairable].astype(np.float64)
    each = counts.sum(axis=1)
    # Pairs of different values within a patch, each patch weighted so that a vote counts once.
    observed = float((2 * counts[:, 0] * counts[:, 1] / (each - 1)).sum()) if len(counts) else 0.0
    totals = counts.sum(axis=0)
    total = float(totals.sum())
    if not total:
        return float("nan")
    expected = float(2 * totals[0] * totals[1]) / (total - 1)
    return 1 - _divide(observed, expected)


def count_confusions(votes: np.ndarray) -> np.ndarray:
    """Counts which classes people take for each other.

    Args:
      votes: (P, N, C).

    Returns:
      (C, C) int64, symmetric: over pairs of people and their common patches, how often one sees
      class c and not d where the other sees d and not c. On the diagonal: how often one sees c
      where the other does not.
    """
    classes = votes.shape[-1]
    counts = np.zeros((classes, classes), np.int64)
    for a, b in itertools.combinations(votes, 2):
        both = ((a != MISSING) & (b != MISSING)).all(axis=-1)
        more = ((a[both] == 1) & (b[both] == 0)).astype(np.int64)  # (n, C)
        less = ((a[both] == 0) & (b[both] == 1)).astype(np.int64)
        exchanged = more.T @ less
        counts += exchanged + exchanged.T
        counts[np.diag_indices(classes)] = counts.diagonal() + (more + less).sum(axis=0)
    return counts


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
