"""Which levels of a pyramid show the slide, by what is to be seen on them.

Formats name the levels of a pyramid, but not always those of which slide: where a file holds two
sections, libraries take the levels of one for those of the other.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from wsss_jax.slides.reading.opened import Opened, with_levels

_GRID = 4  # windows across, and down
_WINDOW = 64  # pixels of a level, at most
_UPPER = 512  # likewise of the level above it
_CELL = 8  # pixels of a window that are averaged: filters and shifts by a pixel do not count
_SEARCHED = 2**22  # pixels of a level that is searched as a whole for where it shows most
_MOST_VARIED = 8  # windows that are chosen so
_SHIFT = 40.0  # of 255: levels are not so much brighter or darker than each other
_NOISE = 6.0  # of 255: what differs less is compression, or glass
_UNLIKE = 0.3  # share of their variance by which levels differ; independent images: 1


def drop_foreign_levels(opened: Opened) -> Opened:
    """The slide without levels that show another picture than the one above them.

    Each is compared with the last that was kept, in some windows: a regular grid of them, and
    those where it shows most. A level without anything on it fits to any.
    """
    kept, notes = [0], []
    for index in range(1, len(opened.sizes)):
        if _is_same(opened, kept[-1], index):
            kept.append(index)
        else:
            notes.append(
                "its level of {} x {} pixels shows another picture and is left out".format(
                    *opened.sizes[index]
                )
            )
    return with_levels(opened, kept, notes)


def _is_same(opened: Opened, upper: int, lower: int) -> bool:
    factors = [a / b for a, b in zip(opened.sizes[upper], opened.sizes[lower], strict=True)]
    side = int(min(max(_UPPER / max(factors), _CELL), _WINDOW))
    pairs = [
        _window_of_both(opened, upper, lower, factors, x, y, side)
        for x, y in _windows(opened, lower, side)
    ]
    above, below = (np.concatenate(cells) for cells in zip(*pairs, strict=True))
    difference = above - below
    if np.abs(difference.mean(axis=0)).max() > _SHIFT:
        return False
    varied = difference.var(axis=0).sum()
    together = above.var(axis=0).sum() + below.var(axis=0).sum()
    return bool(varied < 3 * _NOISE**2 or varied < _UNLIKE * together)


def _windows(opened: Opened, level: int, side: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of windows of a level."""
    width, height = opened.sizes[level]
    last = max(width - side, 0), max(height - side, 0)
    steps = np.linspace(0, 1, _GRID)
    corners = [(round(last[0] * x), round(last[1] * y)) for y in steps for x in steps]
    if width * height <= _SEARCHED:
        whole = cv2.cvtColor(opened.read(level, 0, 0, width, height), cv2.COLOR_RGB2GRAY)
        rows, columns = height // side, width // side
        if rows and columns:
            blocks = whole[: rows * side, : columns * side].reshape(rows, side, columns, side)
            spread = blocks.std(axis=(1, 3))
            for index in np.argsort(spread, axis=None, kind="stable")[-_MOST_VARIED:]:
                row, column = divmod(int(index), columns)
                corners.append((column * side, row * side))
    return iter(dict.fromkeys(corners))


def _window_of_both(
    opened: Opened, upper: int, lower: int, factors: list[float], x: int, y: int, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """(cells, 3) float32 of a window of the level `lower`, as both levels show it."""
    width, height = (min(side, size) for size in opened.sizes[lower])
    cells = max(1, width // _CELL), max(1, height // _CELL)
    parts = []
    for level, (across, down) in ((upper, factors), (lower, (1.0, 1.0))):
        left, top = int(x * across), int(y * down)
        wide, tall = max(1, int(width * across)), max(1, int(height * down))
        image = opened.read(level, left, top, wide, tall)
        small = cv2.resize(image.astype(np.float32), cells, interpolation=cv2.INTER_AREA)
        parts.append(small.reshape(-1, 3))
    return parts[0], parts[1]
