"""How far two label maps of one slide agree, counted pixel by pixel in bands of rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.label_maps import LabelMap
from wsss_jax.slides.outputs.regions import ReadRows

_PIXELS = 2**20  # counted at once: each takes eight bytes then


class CommonClasses(NamedTuple):
    """The classes of two maps as those of one.

    Attributes:
      legend: those of the first map, then what only the second has.
      tables: of either map, (its C + 1,) uint8: its label value -> the common one.
    """

    legend: Legend
    tables: tuple[np.ndarray, np.ndarray]


def find_common_classes(first: Legend, second: Legend) -> CommonClasses:
    """Finds the classes that two maps have, by name.

    Raises:
      InputError: they have no class in common, or too many together.
    """
    if not set(first.names) & set(second.names):
        raise InputError(
            f"the maps have no class in common ({', '.join(first.names)}; "
            f"{', '.join(second.names)}): compare maps of the same classes"
        )
    names, palette = list(first.names), list(first.palette[: first.excluded])
    for name, color in zip(second.names, second.palette):
        if name not in names:
            names.append(name)
            palette.append(color)
    if len(names) > 255:
        raise InputError(f"the maps have {len(names)} classes together: at most 255 are compared")
    legend = Legend(names, [*palette, first.palette[first.excluded]])
    places = {name: value for value, name in enumerate(names)}
    one, other = (
        np.array([*(places[name] for name in each.names), legend.excluded], np.uint8)
        for each in (first, second)
    )
    return CommonClasses(legend, (one, other))


def place_on_frame(label_map: LabelMap, frame: MapFrame) -> ReadRows:
    """Returns what reads a map at the pixels of another map of the same slide.

    Where sizes or resolutions differ, a pixel gets the label at its middle on the slide.
    """
    own = label_map.frame
    if (own.width, own.height, own.scale) == (frame.width, frame.height, frame.scale):
        return label_map.read_rows
    columns, rows = (
        ((np.arange(length) + 0.5) * scale / own_scale).astype(np.int64).clip(0, own_length - 1)
        for length, scale, own_scale, own_length in zip(
            (frame.width, frame.height), frame.scale, own.scale, (own.width, own.height)
        )
    )

    def read_rows(y0: int, y1: int, step: int) -> np.ndarray:
        # Row by row: a finer map has several times as many rows and columns.
        chosen = columns[::step]
        return np.stack([label_map.read_rows(y, y + 1, 1)[0, chosen] for y in rows[y0:y1:step]])

    return read_rows


def count_pairs(
    first: ReadRows, second: ReadRows, frame: MapFrame, tables: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Counts the pixels of each pair of classes.

    Args:
      first, second: read the maps, both at the pixels of `frame`.
      frame: of the first map.
      tables: see `CommonClasses`.

    Returns:
      (C + 1, C + 1) int64; rows the first map, columns the second; index C is excluded.
    """
    size = int(tables[0][-1]) + 1
    counts = np.zeros(size * size, np.int64)
    rows = max(1, _PIXELS // frame.width)
    for y0 in range(0, frame.height, rows):
        y1 = min(y0 + rows, frame.height)
        one, other = tables[0][first(y0, y1, 1)], tables[1][second(y0, y1, 1)]
        codes = one.astype(np.intp) * size + other
        counts += np.bincount(codes.ravel(), minlength=size * size)
    return counts.reshape(size, size)


class ClassAgreement(NamedTuple):
    """How far two maps agree on a class.

    Attributes:
      name: of the class.
      first, second, both: pixels that the first map, the second, and both give to it.
      dice, iou: of the two areas, 0..1; None for a class in neither.
    """

    name: str
    first: int
    second: int
    both: int
    dice: float | None
    iou: float | None


class Agreement(NamedTuple):
    """How far two maps agree.

    Attributes:
      both, first_only, second_only: pixels to which both maps give a class, or one of them.
      equal: pixels to which both give the same class.
      share_equal: `equal` / `both`, None for 0 / 0.
      kappa: Cohen's kappa (1960, eq. 1) over the pixels to which both give a class; None where
        chance alone gives full agreement.
      classes: class by class.
    """

    both: int
    first_only: int
    second_only: int
    equal: int
    share_equal: float | None
    kappa: float | None
    classes: list[ClassAgreement]


class Comparison(NamedTuple):
    """The two maps of a slide, compared.

    Attributes:
      name: of the slide's folder of results.
      legend: of the classes of both.
      mpp: micrometers per pixel of the first map, in whose pixels is counted.
      counts: (C + 1, C + 1) int64, from `count_pairs`.
      notes: sentences on what is not the same of both maps.
    """

    name: str
    legend: Legend
    mpp: float
    counts: np.ndarray
    notes: Sequence[str]

    @property
    def agreement(self) -> Agreement:
        """How far they agree."""
        return measure_agreement(self.counts, self.legend.names)

    def convert_to_mm2(self, pixels: int) -> float:
        """Converts a number of pixels to square millimeters."""
        return pixels * self.mpp**2 / 1e6


def measure_agreement(counts: np.ndarray, names: Sequence[str]) -> Agreement:
    """Measures the agreement from the counts of `count_pairs`.

    Args:
      counts: (C + 1, C + 1) int64.
      names: C class names.
    """
    inner = counts[:-1, :-1]
    both, equal = int(inner.sum()), int(np.trace(inner))
    classes = []
    for value, name in enumerate(names):
        first, second = int(counts[value].sum()), int(counts[:, value].sum())
        hits = int(counts[value, value])
        dice, iou = _divide(2 * hits, first + second), _divide(hits, first + second - hits)
        classes.append(ClassAgreement(name, first, second, hits, dice, iou))
    return Agreement(
        both,
        int(counts[:-1, -1].sum()),
        int(counts[-1, :-1].sum()),
        equal,
        _divide(equal, both),
        _compute_kappa(inner),
        classes,
    )


def _compute_kappa(counts: np.ndarray) -> float | None:
    # In Python's integers, which do not overflow: slides have 10^10 pixels.
    first, second = (counts.sum(axis=axis).tolist() for axis in (1, 0))
    total, equal = sum(first), int(np.trace(counts))
    by_chance = sum(a * b for a, b in zip(first, second))
    return _divide(equal * total - by_chance, total * total - by_chance)


def _divide(part: int, whole: int) -> float | None:
    return part / whole if whole else None
