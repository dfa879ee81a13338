"""Sub-categories of classes: k-means of the features of the patches that have a class."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import sklearn.cluster
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits


class KMeans(NamedTuple):
    """How clusters are found.

    Attributes:
      clusters: k, of each class.
      seed: of the starts.
      starts: of which the one with the smallest sum of squared distances is taken.
      max_iterations: of each start.
    """

    clusters: int
    seed: int
    starts: int
    max_iterations: int


def cluster_classes(
    features: np.ndarray,
    labels: np.ndarray,
    settings: KMeans,
    report: Callable[[int], None] = lambda class_index: None,
) -> np.ndarray:
    """Clusters the patches of each class by themselves; one with several classes is in several.

    Features are taken as they are, without normalization (Chang et al. 2020). Where a class has
    fewer different ones than k, each of these is a cluster, and where rounding takes some of them
    for one, there are fewer.

    Args:
      features: (N, D) float32.
      labels: (N, C), nonzero where a patch has a class.
      settings: of k-means.
      report: is told the index of each class that is done.

    Returns:
      (N, C) int32, the cluster of each patch within each of its classes, from 0 without gaps; -1
      for others.
    """
    clusters = np.full(labels.shape, -1, np.int32)
    for class_index in range(labels.shape[1]):
        rows = np.flatnonzero(labels[:, class_index])
        if rows.size:
            clusters[rows, class_index] = _cluster(features[rows], settings)
        report(class_index)
    return clusters


def _cluster(features: np.ndarray, settings: KMeans) -> np.ndarray:
    """Returns the cluster (N,) of each of N features (N, D)."""
    distinct = len({row.tobytes() for row in features})
    kmeans = sklearn.cluster.KMeans(
        n_clusters=min(settings.clusters, distinct),
        random_state=settings.seed,
        n_init=settings.starts,
        max_iter=settings.max_iterations,
    )
    # Several threads add up in the order in which they end: rounding would differ from run to run.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Rounding took different features for one: the job tells how many clusters there are.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = kmeans.fit_predict(features)
    return np.unique(found, return_inverse=True)[1]
