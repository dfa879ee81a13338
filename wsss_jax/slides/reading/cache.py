"""A cache of arrays, and pasting arrays into one image."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np


class Cache:
    """Keeps the most recently used arrays, up to a number of bytes.

    Those of which the user does not expect to need them again leave first. Several threads may use
    it: each array is made once, and the other threads wait for it.
    """

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._lock = threading.Lock()
        # Oldest use first.
        self._spent: dict[tuple[int, ...], Future[np.ndarray]] = {}
        self._wanted: dict[tuple[int, ...], Future[np.ndarray]] = {}

    def get(
        self, key: tuple[int, ...], make: Callable[[], np.ndarray], *, is_spent: bool = False
    ) -> np.ndarray:
        """Returns the array of a key; if it is not cached, makes it (errors pass through).

        Args:
          key: of the array.
          make: makes it.
          is_spent: whether this is its last use, as far as the caller knows.
        """
        entries = self._spent if is_spent else self._wanted
        with self._lock:
            known = self._spent.pop(key, None) or self._wanted.pop(key, None)
            entry = entries[key] = known or Future()
        if known is not None:
            return known.result()
        try:
            array = make()
        except BaseException as error:
            with self._lock:
                self._drop(key)
            entry.set_exception(error)
            raise
        with self._lock:
            entry.set_result(array)
            self._bytes += array.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._drop(self._find_oldest()).result().nbytes
        return array

    def _find_oldest(self) -> tuple[int, ...]:
        """Finds the array that leaves next; one that is being made stays."""
        entries = itertools.chain(self._spent.items(), self._wanted.items())
        return next(key for key, entry in entries if entry.done())

    def _drop(self, key: tuple[int, ...]) -> Future[np.ndarray]:
        return (self._spent if key in self._spent else self._wanted).pop(key)


def make_white(height: int, width: int) -> np.ndarray:
    """Returns a white image, (height, width, 3) uint8."""
    return np.full((height, width, 3), 255, np.uint8)


def paste(image: np.ndarray, x: int, y: int, part: np.ndarray, left: int, top: int) -> None:
    """Copies into `image`, whose corner is (x, y), what it shares with `part` at (left, top)."""
    x0, x1 = max(x, left), min(x + image.shape[1], left + part.shape[1])
    y0, y1 = max(y, top), min(y + image.shape[0], top + part.shape[0])
    if x0 < x1 and y0 < y1:
        image[y0 - y : y1 - y, x0 - x : x1 - x] = part[y0 - top : y1 - top, x0 - left : x1 - left]
