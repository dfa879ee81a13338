"""Robust statistics: what a few odd values do not move."""

import numpy as np

_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation, of a normal distribution


def compute_robust_z(values: np.ndarray, known: np.ndarray, least_sigma: float) -> np.ndarray:
    """Computes how many standard deviations values lie from the median of others.

    The standard deviation is 1.4826 times the median absolute deviation (Iglewicz and Hoaglin 1993,
    who take a value beyond 3.5 for an outlier).

    Args:
      values: (N,) floats, nan where unknown.
      known: (M,) floats to compare with, M > 0; none is nan.
      least_sigma: smallest standard deviation: where all values are alike, no small difference is
        odd.

    Returns:
      (N,) float64, nan where unknown.
    """
    median = np.median(known)
    sigma = max(_TO_SIGMA * np.median(np.abs(known - median)), least_sigma)
    return (values - median) / sigma
