"""How certain a map is: the share of its area whose highest class probability is low."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def read_highest(read_map: Callable[[int], np.ndarray], num_classes: int) -> np.ndarray:
    """Reads the highest class probability of each pixel of a part.

    Args:
      read_map: from `Parts.iterate`.
      num_classes: C.

    Returns:
      (rows, columns) uint8, 0 to 255 for 0 to 1.
    """
    highest = read_map(1).copy()
    for value in range(1, num_classes):
        np.maximum(highest, read_map(1 + value), out=highest)
    return highest


class Confidence:
    """Counts pixels whose highest class probability is under a threshold, part by part.

    Attributes:
      threshold: 0..1.
      counts, under: (C,) int64, pixels of each class, and those of them under the threshold.
    """

    def __init__(self, threshold: float, num_classes: int):
        """Starts with zeros."""
        self.threshold = threshold
        self.counts, self.under = np.zeros((2, num_classes), np.int64)
        # Probabilities are kept as whole numbers of 0 to 255. Rounded, as .07 * 255 is above 17.85.
        self._limit = round(threshold * 255, 6)

    def add(self, labels: np.ndarray, highest: np.ndarray) -> None:
        """Counts the pixels of a part.

        Args:
          labels: (rows, columns) uint8 of 0..C.
          highest: (rows, columns) uint8 from `read_highest`.
        """
        under = highest < self._limit
        for value in range(len(self.counts)):
            of_class = labels == value
            self.counts[value] += np.count_nonzero(of_class)
            self.under[value] += np.count_nonzero(of_class & under)

    def summarize(self, names: Sequence[str]) -> dict[str, Any]:
        """Returns what a summary says.

        Args:
          names: C class names.

        Returns:
          "threshold"; "share", of the area of all classes that is under it; and "classes", class ->
          the same share of its area. Shares are None where there is no area.
        """
        shares = [
            under / count if count else None
            for under, count in zip(self.under.tolist(), self.counts.tolist(), strict=True)
        ]
        area = int(self.counts.sum())
        return {
            "threshold": self.threshold,
            "share": int(self.under.sum()) / area if area else None,
            "classes": dict(zip(names, shares, strict=True)),
        }
