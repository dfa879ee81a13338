"""Places of a slide that deserve a look: largest regions, hot spots, least certain places.

All are found on the stored map, so they are the same however often the work was interrupted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.mapping.parts import Part
from wsss_jax.slides.outputs.regions import ReadRows, Region, find_regions
from wsss_jax.slides.outputs.windows import Window, WindowSums, choose_apart

REGION = "largest_region"
MIX = "tumor_stroma_mix"
LYMPHOCYTES = "lymphocytes"
UNCERTAIN = "least_certain"
KINDS = {  # kind -> (heading, explanation, field of `config.places` with the side of its windows)
    REGION: ("Largest regions", "The largest connected area of each class.", ""),
    MIX: (
        "Tumor beside stroma",
        "Windows of {side} with the highest product of both areas, which is high where both are "
        "large.",
        "hot_spot",
    ),
    LYMPHOCYTES: (
        "Most lymphocytes",
        "Windows of {side} with the largest area of lymphocytes.",
        "hot_spot",
    ),
    UNCERTAIN: (
        "Least certain",
        "Windows of {side} with the lowest mean of the highest class probability.",
        "uncertain",
    ),
}
_DRAWN = 512  # pixels, longer side of the drawing in which the middle of a region is found
_LEAST_COVERED = 0.5  # share of a window with a class, from which it may be least certain


class Place(NamedTuple):
    """A place that deserves a look; of JSON types.

    Attributes:
      kind: one of `KINDS`.
      text: what is there, a short sentence.
      box: left, top, width, height in level-0 pixels of the slide.
      value: mm2 of a region; 0..1 of others: 4 x share of tumor x share of stroma in a window, the
        share of lymphocytes in it (of a whole one, where the map ends), or the mean of the highest
        class probability.
      center: (x, y) in level-0 pixels, a point to look at: inside a region, the middle of a window.
    """

    kind: str
    text: str
    box: list[int]
    value: float
    center: list[int]


class HotSpots:
    """Finds the windows where tumor and stroma lie side by side, and those of most lymphocytes."""

    def __init__(
        self, side: float, frame: MapFrame, names: Sequence[str], roles: Mapping[str, str]
    ):
        """Starts without any pixels.

        Args:
          side: of a window, micrometers.
          frame: of the map.
          names: C class names.
          roles: role -> class name, the data set's `roles`; kinds whose roles it lacks are not
            looked for.
        """
        self._frame, self._roles = frame, roles
        self._values = [names.index(name) for name in roles.values()]
        self._sums = WindowSums(side / frame.mpp, frame.width, frame.height, len(roles))

    def add(self, part: Part, labels: np.ndarray) -> None:
        """Adds the (rows, columns) uint8 labels of a part."""
        for channel, value in enumerate(self._values):
            self._sums.add(channel, part, labels == value)

    def find(self, most: int) -> list[Place]:
        """Finds at most `most` places of each kind, the highest value first."""
        areas = dict(zip(self._roles, self._sums.sum_windows().astype(np.float64)))
        kinds: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}
        if {"tumor", "stroma"} <= areas.keys():
            kinds[MIX] = areas["tumor"] * areas["stroma"], ("tumor", "stroma")
        if "lymphocytes" in areas:
            kinds[LYMPHOCYTES] = areas["lymphocytes"], ("lymphocytes",)
        places = []
        for kind, (scores, roles) in kinds.items():
            for at in choose_apart(np.where(scores > 0, scores, -np.inf), most):
                window = self._sums.get_window(*at)
                shares = [float(areas[role][at]) / self._sums.window_pixels for role in roles]
                value = 4 * shares[0] * shares[1] if kind == MIX else shares[0]
                texts = (
                    f"{self._roles[role]} {_describe_area(float(areas[role][at]), self._frame)}"
                    for role in roles
                )
                places.append(_make_place(kind, ", ".join(texts), window, value, self._frame))
        return places


class UncertainPlaces:
    """Finds the windows in which the highest class probability is lowest on average."""

    def __init__(self, side: float, frame: MapFrame):
        """Starts without any pixels; the arguments are those of `HotSpots`."""
        self._frame = frame
        self._sums = WindowSums(side / frame.mpp, frame.width, frame.height, 2)

    def add(self, part: Part, is_class: np.ndarray, highest: np.ndarray) -> None:
        """Adds a part.

        Args:
          part: where it lies.
          is_class: (rows, columns) bool, whether a pixel has a class.
          highest: (rows, columns) uint8 from `confidence.read_highest`, 0 where it has none.
        """
        self._sums.add(0, part, is_class)
        self._sums.add(1, part, highest)

    def find(self, most: int) -> list[Place]:
        """Finds at most `most` places, the least certain first."""
        counts, sums = self._sums.sum_windows()
        means = sums / np.maximum(counts, 1) / 255
        covered = counts >= _LEAST_COVERED * self._sums.count_pixels()
        places = []
        for at in choose_apart(np.where(covered & (counts > 0), -means, -np.inf), most):
            window, mean = self._sums.get_window(*at), float(means[at])
            text = f"Mean probability {mean:.2f}"
            places.append(_make_place(UNCERTAIN, text, window, mean, self._frame))
        return places


def find_largest_regions(read_rows: ReadRows, frame: MapFrame, names: Sequence[str]) -> list[Place]:
    """Finds the largest region of each class that the map has; of equal ones the upper left one.

    A region that was cut (see `regions.find_regions`) counts as several.

    Args:
      read_rows: reads the map.
      frame: of the map.
      names: C class names.
    """
    largest: dict[int, Region] = {}
    for region in find_regions(read_rows, frame.width, frame.height, excluded=len(names)):
        if region.value not in largest or _rank(region) > _rank(largest[region.value]):
            largest[region.value] = region
    places = []
    for value, region in sorted(largest.items()):
        mm2 = region.pixels * frame.mpp**2 / 1e6
        (x0, y0), (x1, y1) = region.rings[0].min(axis=0), region.rings[0].max(axis=0)
        window = Window(int(x0), int(y0), int(x1), int(y1))
        text = f"{names[value]} {_describe_area(region.pixels, frame)}"
        place = _make_place(REGION, text, window, mm2, frame)
        places.append(place._replace(center=_scale(_find_middle(region), frame)))
    return places


def _rank(region: Region) -> tuple[int, int, int]:
    x, y = region.rings[0][0].tolist()
    return region.pixels, -y, -x


def _find_middle(region: Region) -> tuple[float, float]:
    """Finds the middle of the largest disk in a region, as drawn small: x, y in map pixels."""
    outline = region.rings[0]
    corner = outline.min(axis=0)
    sides = outline.max(axis=0) - corner
    factor = max(1.0, float(sides.max()) / _DRAWN)
    # Without the right and lower edge: corners lie between pixels.
    inner = sides - 1
    rings = [(np.minimum(ring - corner, inner) / factor).astype(np.int32) for ring in region.rings]
    width, height = (int(side / factor) + 1 for side in inner)
    drawn = np.zeros((height, width), np.uint8)
    cv2.fillPoly(drawn, rings, 1)
    room = cv2.distanceTransform(np.pad(drawn, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = divmod(int(np.argmax(room)), width)
    return float(corner[0] + (x + 0.5) * factor), float(corner[1] + (y + 0.5) * factor)


def _make_place(kind: str, text: str, window: Window, value: float, frame: MapFrame) -> Place:
    ends = _scale((window.x1, window.y1), frame)
    left, top = _scale((window.x0, window.y0), frame)
    right, bottom = (min(end, size) for end, size in zip(ends, frame.slide_size))
    middle = (window.x0 + window.x1) / 2, (window.y0 + window.y1) / 2
    box = [left, top, max(1, right - left), max(1, bottom - top)]
    return Place(kind, text, box, value, _scale(middle, frame))


def _scale(point: tuple[float, float], frame: MapFrame) -> list[int]:
    """Converts map pixels to level-0 pixels inside the slide."""
    return [
        min(round(at * scale), size)
        for at, scale, size in zip(point, frame.scale, frame.slide_size)
    ]


def _describe_area(pixels: float, frame: MapFrame) -> str:
    """Writes an area with three significant digits, in square micrometers if it is small."""
    mm2 = pixels * frame.mpp**2 / 1e6
    if mm2 < 0.01:
        return f"{mm2 * 1e6:,.0f} µm²"
    return f"{mm2:,.0f} mm²" if mm2 >= 100 else f"{mm2:#.3g} mm²"


def make_link(place: Mapping[str, Any], origin: Sequence[int], mpp_xy: Sequence[float]) -> str:
    """Makes the address of a place in the viewer: `view.html#x=..&y=..&width=..`, micrometers.

    Args:
      place: one of a summary's "places".
      origin: level-0 pixel (x, y) at which the scanned area begins, from which x and y count.
      mpp_xy: micrometers per level-0 pixel, across and down.
    """
    left, top, width, height = place["box"]
    x, y = (
        (start + side / 2 - first) * mpp
        for start, side, first, mpp in zip((left, top), (width, height), origin, mpp_xy)
    )
    return f"view.html#x={x:.1f}&y={y:.1f}&width={width * mpp_xy[0]:.1f}"
