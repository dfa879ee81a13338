"""A cache of arrays, and pasting arrays into one image."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np


class Cache:
    """Keeps the most recently used arrays, up to a number of bytes.

    Several threads may use it: each array is made once, and the other threads wait for it.
    """

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._lock = threading.Lock()
        self._entries: dict[tuple[int, ...], Future[np.ndarray]] = {}  # oldest use first

    def get(self, key: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the array of a key; if it is not cached, makes it (errors pass through)."""
        with self._lock:
            known = self._entries.pop(key, None)
            entry = self._entries[key] = Future() if known is None else known
        if known is not None:
            return known.result()
        try:
            array = make()
        except BaseException as error:
            with self._lock:
                del self._entries[key]
            entry.set_exception(error)
            raise
        with self._lock:
            entry.set_result(array)
            self._bytes += array.nbytes
            while self._bytes > self._limit:
                oldest = next(key for key, entry in self._entries.items() if entry.done())
                self._bytes -= self._entries.pop(oldest).result().nbytes
        return array


def make_white(height: int, width: int) -> np.ndarray:
    """Returns a white image, (height, width, 3) uint8."""
    return np.full((height, width, 3), 255, np.uint8)


def paste(image: np.ndarray, x: int, y: int, part: np.ndarray, left: int, top: int) -> None:
    """Copies into `image`, whose corner is (x, y), what it shares with `part` at (left, top)."""
    x0, x1 = max(x, left), min(x + image.shape[1], left + part.shape[1])
    y0, y1 = max(y, top), min(y + image.shape[0], top + part.shape[0])
    if x0 < x1 and y0 < y1:
        image[y0 - y : y1 - y, x0 - x : x1 - x] = part[y0 - top : y1 - top, x0 - left : x1 - left]
