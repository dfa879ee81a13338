"""Distributions as strips: a point for each slide on a line, beside each other where they meet."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wsss_jax.report.legend import Color

HEIGHT = 56  # pixels
RADIUS = 4  # pixels, of a point
_WIDTH = 640  # pixels at which points do not lie on each other; the strip is as wide as its place


class Value(NamedTuple):
    """The value of a slide.

    Attributes:
      name: of the slide.
      link: to its report.
      value: from 0 on.
      text: the value as it is written.
      outlier: whether it lies far from the others.
    """

    name: str
    link: str
    value: float
    text: str
    outlier: bool = False


class Strip(NamedTuple):
    """The distribution of a measure.

    Attributes:
      title: what is measured.
      color: of the points, None for that of text.
      points: (x in percent of the width, y in pixels, the value).
      median: x in percent.
      texts: what is written below: at 0, the median, and at the right end.
    """

    title: str
    color: Color | None
    points: Sequence[tuple[float, float, Value]]
    median: float
    texts: tuple[str, str, str]


def make_strip(
    title: str,
    color: Color | None,
    values: Sequence[Value],
    largest: float,
    texts: tuple[str, str, str],
) -> Strip:
    """Arranges the values on a strip; outliers come last, so that they lie on top.

    Args:
      title, color, texts: see `Strip`.
      values: of the slides, at least one.
      largest: value at the right end of the strip, over 0.
    """
    order = sorted(values, key=lambda each: (each.outlier, each.value, each.name))
    shares = np.array([each.value for each in order]) / largest
    columns = np.floor(shares * _WIDTH / (2 * RADIUS)).astype(int)
    places = dict.fromkeys(columns.tolist(), 0)
    ranks = []
    for column in columns.tolist():
        ranks.append(places[column])
        places[column] += 1
    # Around the middle: 0, -1, 1, -2, 2, ...; closer where a column would be too high.
    room = HEIGHT / 2 - RADIUS - 1
    heights = []
    for column, rank in zip(columns.tolist(), ranks):
        step = min(2.0 * RADIUS, room / max(1, places[column] // 2))
        heights.append(HEIGHT / 2 + step * ((rank + 1) // 2) * (-1 if rank % 2 else 1))
    # Points keep within the strip.
    positions = 100 * shares.clip(0, 1)
    middle = 100 * float(np.median(shares.clip(0, 1)))
    return Strip(title, color, list(zip(positions.tolist(), heights, order)), middle, texts)
