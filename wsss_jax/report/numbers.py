"""The numbers of classes on a map, so that nobody needs its colors to read it.

A class has the number of its value in label maps. Each is written into the largest regions of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

PER_CLASS = 6  # numbers of a class on the map of a slide, at most


class Place(NamedTuple):
    """Where the number of a class is centered, in pixels of the map."""

    value: int
    x: int
    y: int


def places(
    labels: np.ndarray, num_classes: int, side: float, per_class: int = PER_CLASS
) -> list[Place]:
    """Where to write which number.

    One in the middle of the largest disk of each class, unless its box would hide all of it, and
    further ones where there is room for twice the box, far from those of the same class.

    Args:
      labels: (h, w) integers of 0..C.
      num_classes: C.
      side: pixels, of the box of a number.
      per_class: numbers of a class, at most.
    """
    found: list[Place] = []
    apart = max(labels.shape) / per_class
    for value in range(num_classes):
        inside = np.pad((labels == value).astype(np.uint8), 1)
        room = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        for other in found:
            _clear(room, other, side)
        for number in range(per_class):
            y, x = np.unravel_index(np.argmax(room), room.shape)
            if room[y, x] < (side if number else side / 3):
                break
            found.append(Place(value, int(x), int(y)))
            _clear(room, found[-1], apart)
    return found


def _clear(room: np.ndarray, place: Place, radius: float) -> None:
    """No further number within `radius` of one, along either axis."""
    reach = int(radius)
    rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (place.y, place.x))
    room[rows, columns] = 0


def legend(names: Sequence[str]) -> list[str]:
    """The names of classes with their numbers before them."""
    return [f"{value} {name}" for value, name in enumerate(names)]
