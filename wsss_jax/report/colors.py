"""Colors of classes in pictures: the data set's own, or colors that everybody can tell apart."""

from functools import lru_cache

import numpy as np

from data.dataset import Dataset
from wsss_jax.report.legend import Color, Legend

# Okabe and Ito, "Color universal design" (2008). Black is last: on tissue it looks like nuclei.
OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # reddish purple
    (0, 0, 0),
)
# Linear RGB as people without red-sensitive (protanopia) or green-sensitive (deuteranopia) cones
# see it (Machado, Oliveira and Fernandes 2009, severity 1.0).
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
_TOO_CLOSE = 0.1  # OKLab distance below which two colors look alike
_GRID = 8  # values per channel among which further colors are chosen
# Linear RGB to OKLab (Ottosson 2020), where distances are close to the differences people see.
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def make_legend(dataset: Dataset, scheme: str) -> Legend:
    """Makes the legend of a data set's pictures.

    Args:
      dataset: names the classes; label files keep its palette, whatever the scheme.
      scheme: "dataset" for the data set's colors, or "colorblind" for those of
        `make_colorblind_palette`. What is excluded keeps its color unless a class has about the
        same, then it gets a further one.
    """
    if scheme == "dataset":
        return Legend(dataset.classes, dataset.palette)
    colors, excluded = make_colorblind_palette(dataset.num_classes), dataset.palette[-1]
    if _measure_distances(_to_oklab(np.array(colors)), np.array([excluded])).min() < _TOO_CLOSE:
        excluded = make_colorblind_palette(dataset.num_classes + 1)[-1]
    return Legend(dataset.classes, (*colors, excluded))


@lru_cache
def make_colorblind_palette(count: int) -> tuple[Color, ...]:
    """Chooses `count` colors that people with and without red-green blindness can tell apart.

    The first eight are those of Okabe and Ito, in their order. Each further one is the color
    farthest from white and all colors before it, for the vision that tells it apart worst.
    """
    palette = list(OKABE_ITO[:count])
    if count > len(palette):
        steps = np.linspace(0, 255, _GRID).round().astype(int)
        candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
        seen = _to_oklab(candidates)
        nearest = np.full(len(candidates), np.inf)
        for color in [(255, 255, 255), *palette]:
            nearest = np.minimum(nearest, _measure_distances(seen, np.array([color])))
        while len(palette) < count:
            color = candidates[np.argmax(nearest)]
            palette.append(tuple(color.tolist()))
            nearest = np.minimum(nearest, _measure_distances(seen, color[None]))
    return tuple(palette)


def simulate_vision(colors: np.ndarray, vision: str) -> np.ndarray:
    """Converts (..., 3) sRGB of 0..255 to the linear RGB of 0..1 that one of `VISIONS` sees."""
    values = np.asarray(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.clip(linear @ VISIONS[vision].T, 0, 1)


def _measure_distances(seen: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Returns (N,): how far `color` (1, 3) is from N colors, for the vision that sees it worst.

    Args:
      seen: (V, N, 3), the N colors as `_to_oklab` returns them.
      color: (1, 3) sRGB of 0..255.
    """
    return np.linalg.norm(seen - _to_oklab(color), axis=-1).min(axis=0)


def _to_oklab(colors: np.ndarray) -> np.ndarray:
    """Converts (N, 3) sRGB of 0..255 to the (V, N, 3) OKLab values that each vision sees."""
    lms = np.stack([simulate_vision(colors, vision) for vision in VISIONS]) @ _TO_LMS.T
    return np.cbrt(lms) @ _TO_OKLAB.T
