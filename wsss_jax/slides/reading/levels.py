"""Checks by their pixels that the levels of a pyramid show the slide.

Formats name the levels of a pyramid, but not always the slide they belong to: where a file holds
two sections, libraries may take the levels of one section for those of the other.
"""

import cv2
import numpy as np

from wsss_jax.slides.reading.raw_slide import RawSlide

_GRID = 4  # windows across, and down
_WINDOW = 64  # pixels of a level, at most
_UPPER = 512  # pixels of the level above it, at most
_CELL = 8  # pixels of a window that are averaged: filters and shifts by a pixel do not count
_SEARCHED = 2**22  # pixels of a level that is searched as a whole for the windows that vary most
_MOST_VARIED = 8  # windows that are chosen by variance
_SHIFT = 40.0  # of 255: the most by which the brightness of two levels may differ
_NOISE = 6.0  # of 255: smaller differences are compression, or glass
_UNLIKE = 0.3  # share of their variance by which levels differ; independent images: 1


def drop_foreign_levels(raw: RawSlide) -> RawSlide:
    """Leaves out levels that show another picture than the level above them.

    Each level is compared with the last one that was kept, in windows of a regular grid and in
    those that vary most. A blank level fits any other.
    """
    indices, notes = [0], []
    for index in range(1, len(raw.sizes)):
        if _show_same_picture(raw, indices[-1], index):
            indices.append(index)
        else:
            width, height = raw.sizes[index]
            notes.append(
                f"its level of {width} x {height} pixels shows another picture and is left out"
            )
    return raw.select_levels(indices, notes)


def _show_same_picture(raw: RawSlide, upper: int, lower: int) -> bool:
    width, height = raw.sizes[lower]
    factors = raw.sizes[upper][0] / width, raw.sizes[upper][1] / height
    side = int(min(max(_UPPER / max(factors), _CELL), _WINDOW))
    windows = [
        (x, y, min(side, width), min(side, height)) for x, y in _choose_corners(raw, lower, side)
    ]
    above = np.concatenate([_average_cells(raw, upper, factors, window) for window in windows])
    below = np.concatenate([_average_cells(raw, lower, (1.0, 1.0), window) for window in windows])
    difference = above - below
    if np.abs(difference.mean(axis=0)).max() > _SHIFT:
        return False
    variance = difference.var(axis=0).sum()
    total = above.var(axis=0).sum() + below.var(axis=0).sum()
    return bool(variance < 3 * _NOISE**2 or variance < _UNLIKE * total)


def _choose_corners(raw: RawSlide, level: int, side: int) -> list[tuple[int, int]]:
    """Chooses windows of a level; returns their upper left corners, each once."""
    width, height = raw.sizes[level]
    last = max(width - side, 0), max(height - side, 0)
    steps = np.linspace(0, 1, _GRID)
    corners = [(round(last[0] * x), round(last[1] * y)) for y in steps for x in steps]
    if width * height <= _SEARCHED:
        whole = cv2.cvtColor(raw.read(level, 0, 0, width, height), cv2.COLOR_RGB2GRAY)
        rows, columns = height // side, width // side
        if rows and columns:
            blocks = whole[: rows * side, : columns * side].reshape(rows, side, columns, side)
            spread = blocks.std(axis=(1, 3))
            for index in np.argsort(spread, axis=None, kind="stable")[-_MOST_VARIED:]:
                row, column = divmod(int(index), columns)
                corners.append((column * side, row * side))
    return list(dict.fromkeys(corners))


def _average_cells(
    raw: RawSlide, level: int, factors: tuple[float, float], window: tuple[int, int, int, int]
) -> np.ndarray:
    """Averages the cells of a window (x, y, width, height) as a level shows it; (cells, 3) float32.

    `factors`: pixels of that level per pixel of the window, across and down.
    """
    x, y, width, height = window
    across, down = factors
    wide, tall = max(1, int(width * across)), max(1, int(height * down))
    image = raw.read(level, int(x * across), int(y * down), wide, tall)
    cells = max(1, width // _CELL), max(1, height // _CELL)
    small = cv2.resize(image.astype(np.float32), cells, interpolation=cv2.INTER_AREA)
    return small.reshape(-1, 3)
