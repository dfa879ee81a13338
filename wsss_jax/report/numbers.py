"""Numbers of classes on a map, so that it can be read without its colors.

The number of a class is its value in label maps. It is written into the largest regions of the
class.
"""

from typing import NamedTuple

import cv2
import numpy as np

PER_CLASS = 6  # most numbers of a class on the map of a slide


class Place(NamedTuple):
    """Where the number of a class is centered, in pixels of the map."""

    value: int
    x: int
    y: int


def place_numbers(
    labels: np.ndarray, num_classes: int, side: float, per_class: int = PER_CLASS
) -> list[Place]:
    """Chooses where to write the numbers of the classes.

    The first number of a class goes to the middle of the largest disk that fits into the class,
    unless the number's box would hide all of that disk. Further ones go where a disk twice as wide
    as the box fits, far from the others of the same class.

    Args:
      labels: (h, w) integers of 0..C.
      num_classes: C.
      side: of a number's box, in pixels.
      per_class: most numbers of a class.
    """
    places: list[Place] = []
    apart = max(labels.shape) / per_class
    for value in range(num_classes):
        inside = np.pad((labels == value).astype(np.uint8), 1)
        room = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        for other in places:
            _block(room, other, side)
        for number in range(per_class):
            y, x = np.unravel_index(np.argmax(room), room.shape)
            if room[y, x] < (side if number else side / 3):
                break
            places.append(Place(value, int(x), int(y)))
            _block(room, places[-1], apart)
    return places


def _block(room: np.ndarray, place: Place, distance: float) -> None:
    """Keeps further numbers away from a place, by `distance` along both axes."""
    reach = int(distance)
    rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (place.y, place.x))
    room[rows, columns] = 0
