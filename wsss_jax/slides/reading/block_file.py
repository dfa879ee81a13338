"""Arrays that wait on disk for their next use."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_LEFT_FREE = 1 << 30  # bytes of the disk that are left to results


@contextmanager
def open_block_file(folder: Path, most_bytes: int) -> Iterator["BlockFile"]:
    """Opens a temporary file for arrays of at most so many bytes, in an existing folder.

    The file has no name: even a killed process leaves nothing.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        yield BlockFile(file.fileno(), most_bytes)


class BlockFile:
    """Keeps arrays in a file until they are taken; several threads may use it.

    It is a cache: what was not kept, for lack of space, has to be made again.
    """

    def __init__(self, file: int, most_bytes: int):
        """Begins with nothing.

        Args:
          file: descriptor of an empty file, to read and to write.
          most_bytes: of an array.
        """
        self._file, self._slot = file, most_bytes
        self._lock = threading.Lock()
        self._places: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {}  # offset, shape
        self._free: list[int] = []  # offsets of arrays that were taken
        self._end = 0

    def put(self, key: tuple[int, ...], array: np.ndarray) -> None:
        """Keeps a uint8 array that is not kept yet, if there is space."""
        disk = os.fstatvfs(self._file)
        with self._lock:
            if not self._free and disk.f_bavail * disk.f_frsize < _LEFT_FREE:
                return
            offset = self._free.pop() if self._free else self._end
            self._end = max(self._end, offset + self._slot)
        try:
            written = os.pwrite(self._file, np.ascontiguousarray(array), offset)
        except OSError:  # a quota, or another process fills the disk
            written = 0
        with self._lock:
            if written == array.nbytes:
                self._places[key] = offset, array.shape
            else:
                self._free.append(offset)

    def take(self, key: tuple[int, ...]) -> np.ndarray | None:
        """Returns the array of a key and keeps it no longer; None if it was not kept."""
        with self._lock:
            offset, shape = self._places.pop(key, (0, None))
        if shape is None:
            return None
        array = np.empty(shape, np.uint8)
        read = os.preadv(self._file, [array], offset)
        with self._lock:
            self._free.append(offset)
        return array if read == array.nbytes else None
