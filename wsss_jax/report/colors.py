"""Colors of classes in pictures: those of the data set, or some that all eyes tell apart."""

import dataclasses
from functools import lru_cache

import numpy as np

from data.dataset import Dataset
from wsss_jax.report.canvas import Color

# Okabe and Ito, "Color universal design" (2008), black last: on tissue it looks like nuclei.
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
# Linear RGB as people without one kind of cone see it (Machado, Oliveira and Fernandes 2009,
# severity 1.0): no red-sensitive ones, no green-sensitive ones.
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
_ALIKE = 0.1  # OKLab distance of colors that are taken for one
_GRID = 8  # steps of each channel among which further colors are looked for
# Linear RGB to OKLab (Ottosson 2020), in which distances are about those that people see.
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


def for_pictures(dataset: Dataset, palette: str) -> Dataset:
    """The data set with the colors that its pictures have.

    Args:
      dataset: whose own palette the label files keep.
      palette: "dataset", or "colorblind" for `colorblind`; what is excluded keeps its color
        if that is none of the classes, else has a further one.
    """
    if palette == "dataset":
        return dataset
    colors, excluded = colorblind(dataset.num_classes), tuple(dataset.palette[-1])
    if _distances(_seen(np.array(colors)), np.array([excluded])).min() < _ALIKE:
        excluded = colorblind(dataset.num_classes + 1)[-1]
    return dataclasses.replace(dataset, palette=(*colors, excluded))


@lru_cache
def colorblind(count: int) -> tuple[Color, ...]:
    """`count` colors that people with and without red-green blindness tell apart.

    Up to eight they are Okabe and Ito's, in their order. Each further one is the color farthest
    from all before it and from white, for the eyes that tell it apart worst.
    """
    found = list(OKABE_ITO[:count])
    if count > len(found):
        steps = np.linspace(0, 255, _GRID).round().astype(int)
        candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
        seen = _seen(candidates)
        nearest = np.full(len(candidates), np.inf)
        for color in [(255, 255, 255), *found]:
            nearest = np.minimum(nearest, _distances(seen, np.array([color])))
        while len(found) < count:
            color = candidates[np.argmax(nearest)]
            found.append(tuple(color.tolist()))
            nearest = np.minimum(nearest, _distances(seen, color[None]))
    return tuple(found)


def _distances(seen: np.ndarray, color: np.ndarray) -> np.ndarray:
    """(N,) distance of a color (1, 3) to N for the eyes that tell them apart worst."""
    return np.linalg.norm(seen - _seen(color), axis=-1).min(axis=0)


def _seen(colors: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB of 0..255 as the (V, N, 3) OKLab values that each vision sees."""
    lms = np.stack([simulated(colors, vision) for vision in VISIONS]) @ _TO_LMS.T
    return np.cbrt(lms) @ _TO_OKLAB.T


def simulated(colors: np.ndarray, vision: str) -> np.ndarray:
    """(..., 3) sRGB of 0..255 as the linear RGB of 0..1 that a vision of `VISIONS` sees."""
    values = np.asarray(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.clip(linear @ VISIONS[vision].T, 0, 1)
