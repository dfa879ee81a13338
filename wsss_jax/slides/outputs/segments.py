"""Straight segments between corners of pixels: whether they meet, and how far a point is.

With whole numbers, so that nothing is rounded where a result is yes or no.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def may_meet(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Does `meet` for (L, 2) ends of many segments, but also finds some that lie in line."""
    of_c, of_d, of_a, of_b = (
        (q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0]
        for p, q, r in ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    )
    apart = (np.maximum(a, b) < np.minimum(c, d)) | (np.maximum(c, d) < np.minimum(a, b))
    apart = apart.any(axis=1)
    for one, other in ((of_c, of_d), (of_a, of_b)):
        apart |= ((one > 0) & (other > 0)) | ((one < 0) & (other < 0))
    shared = np.zeros(len(a), np.int64)
    for p in (a, b):
        for q in (c, d):
            shared += (p == q).all(axis=1)
    in_line = (of_c == 0) & (of_d == 0)
    return ~apart & (in_line | (shared == 0))


def orient(a: Sequence[int], b: Sequence[int], c: Sequence[int]) -> int:
    """Returns a number above 0 if c is left of the line from a to b, 0 if it is on it."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def meet(a: Sequence[int], b: Sequence[int], c: Sequence[int], d: Sequence[int]) -> bool:
    """Whether segments a-b and c-d meet at a point that is no end of both, or are the same."""
    for axis in (0, 1):
        if max(a[axis], b[axis]) < min(c[axis], d[axis]):
            return False
        if max(c[axis], d[axis]) < min(a[axis], b[axis]):
            return False
    of_c, of_d = orient(a, b, c), orient(a, b, d)
    if (of_c > 0 and of_d > 0) or (of_c < 0 and of_d < 0):
        return False
    of_a, of_b = orient(c, d, a), orient(c, d, b)
    if (of_a > 0 and of_b > 0) or (of_a < 0 and of_b < 0):
        return False
    shared = (a == c) + (a == d) + (b == c) + (b == d)
    if of_c == of_d == of_a == of_b == 0:
        if not shared:
            return True
        if shared == 2:
            return True
        # One common end: whether they lie on the same side of it.
        end, one, other = (a, b, d if a == c else c) if a in (c, d) else (b, a, d if b == c else c)
        return (one[0] - end[0]) * (other[0] - end[0]) + (one[1] - end[1]) * (other[1] - end[1]) > 0
    return not shared


def jumps(path: Sequence[Sequence[int]], point: Sequence[int]) -> bool:
    """Whether the straight line between the ends of a path passes a point on its other side."""
    crossed = sum(_crosses_ray(a, b, point) for a, b in pairwise(path))
    return crossed % 2 != _crosses_ray(path[0], path[-1], point)


def _crosses_ray(a: Sequence[int], b: Sequence[int], point: Sequence[int]) -> int:
    """Counts, 0 or 1, whether a segment crosses the ray from a point to the right."""
    if (a[1] > point[1]) == (b[1] > point[1]):
        return 0
    side = orient(a, b, point)
    return int(side > 0) if b[1] > a[1] else int(side < 0)


def measure_distance(point: Sequence[int], a: Sequence[int], b: Sequence[int]) -> float:
    """Measures the distance of a point from a segment, rounded like GEOS does."""
    x, y = b[0] - a[0], b[1] - a[1]
    square = x * x + y * y
    along = (point[0] - a[0]) * x + (point[1] - a[1]) * y
    if along <= 0 or along >= square:
        end = a if along <= 0 else b
        return math.sqrt((point[0] - end[0]) ** 2 + (point[1] - end[1]) ** 2)
    beside = ((a[1] - point[1]) * x - (a[0] - point[0]) * y) / square
    return abs(beside) * math.sqrt(square)
