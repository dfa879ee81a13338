"""Where a map lies on its slide."""

from typing import NamedTuple


class MapFrame(NamedTuple):
    """The pixels of a map, and where they lie on its slide.

    Map pixel (i, j) covers the rectangle of `scale` level-0 pixels whose upper left corner is
    (i * scale[0], j * scale[1]) in level-0 pixels.

    Attributes:
      width, height: of the map, pixels.
      mpp: micrometers per map pixel, which is square.
      scale: level-0 pixels per map pixel, across and down.
      slide_size: width and height of level 0, pixels.
      origin: the level-0 pixel (x, y) at which viewers such as QuPath begin to count.
    """

    width: int
    height: int
    mpp: float
    scale: tuple[float, float]
    slide_size: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
