"""Pictures of a slide and its tissue map, about 1200 pixels large.

Outlines, legend and map have exactly the palette's colors; the scale bar is right to the pixel.
Numbers in the legend and on the map say which class is which to those who cannot tell the colors.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from wsss_jax.files import atomic_path
from wsss_jax.report import figures, numbers
from wsss_jax.report.canvas import (
    FRAME,
    GAP,
    INK,
    LEGEND_HEIGHT,
    MARGIN,
    NUMBER_SIDE,
    SWATCH,
    Color,
    _draw_number,
    _draw_swatch,
    _elide,
    _font,
    _Page,
    _wrap_legend,
)

THUMBNAIL = "thumbnail.png"
OVERLAY = "overlay.png"
SMALL = "small.jpg"

SMALL_SIDE = 240
NARROWEST_PAGE = 360
BAR_SHARE = 0.25  # of the picture's width, at most
BAR_HEIGHT = 6
OUTLINE = 1  # pixels on either side of a border


class SlidePictures(NamedTuple):
    """What the pictures of a slide are made of.

    `thumbnail` is (h, w, 3) uint8 RGB; `labels` is (h, w) uint8 of 0..C, the same place at the same
    size; `um_per_pixel` is the side of one of their pixels in micrometers; `classes` are C names
    and `palette` C + 1 colors, the last for the excluded value C.
    """

    thumbnail: np.ndarray
    labels: np.ndarray
    um_per_pixel: float
    classes: Sequence[str]
    palette: Sequence[Color]


def write_pictures(folder: Path | str, pictures: SlidePictures) -> None:
    """Write `thumbnail.png`, `overlay.png` and, for the index of a cohort, `small.jpg`.

    Args:
        folder: where to; it is made if missing.
        pictures: what they show.
    """
    small = Image.fromarray(_tinted(pictures))
    small.thumbnail((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS)
    for name, image, options in (
        (THUMBNAIL, Image.fromarray(pictures.thumbnail), {}),
        (OVERLAY, Image.fromarray(overlay(pictures)), {}),
        (SMALL, small, {"quality": 85, "subsampling": 0}),
    ):
        with atomic_path(Path(folder) / name) as temporary:
            image.save(temporary, **options)


def overlay(pictures: SlidePictures) -> np.ndarray:
    """The slide tinted by class, each region outlined and the largest ones numbered.

    Below it are a legend and a scale bar.

    Returns:
        (h', w', 3) uint8 RGB, the picture unscaled with its upper left corner at (MARGIN, MARGIN).
    """
    tinted = _tinted(pictures)
    height, width = tinted.shape[:2]
    inner = max(width, NARROWEST_PAGE)
    length_um, bar_text = scale_bar(width * pictures.um_per_pixel)
    bar = max(1, round(length_um / pictures.um_per_pixel))
    font = _font(14)
    for_legend = inner - bar - math.ceil(font.getlength(bar_text)) - 4 * GAP
    longest = for_legend - SWATCH - GAP
    entries = [
        (tuple(color), _elide(name, font, longest))
        for color, name in zip(pictures.palette[:-1], numbers.legend(pictures.classes), strict=True)
    ]
    lines = _wrap_legend(entries, for_legend)
    top = MARGIN + height + 2 * GAP
    page = _Page(inner + 2 * MARGIN, top + len(lines) * LEGEND_HEIGHT - GAP + MARGIN)
    page.image.paste(Image.fromarray(tinted), (MARGIN, MARGIN))
    for place in number_places(pictures):
        _draw_number(page, place.value, MARGIN + place.x, MARGIN + place.y)
    page.draw.rectangle((MARGIN - 1, MARGIN - 1, MARGIN + width, MARGIN + height), outline=FRAME)
    for number, line in enumerate(lines):
        x, middle = MARGIN, top + number * LEGEND_HEIGHT + SWATCH // 2
        for color, name in line:
            x = _draw_swatch(page, color, name, x, middle, font) + 24
    right, middle = MARGIN + inner, top + SWATCH // 2
    bar_top = middle - BAR_HEIGHT // 2
    page.draw.rectangle((right - bar, bar_top, right - 1, bar_top + BAR_HEIGHT - 1), INK)
    page.draw.text((right - bar - GAP, middle + 5), bar_text, INK, font, anchor="rs")
    return np.asarray(page.image)


def scale_bar(width_um: float) -> tuple[float, str]:
    """The longest of 1, 2, 5 x 10^n micrometers that is at most a quarter of a picture's width.

    Args:
        width_um: of the picture, in micrometers.

    Returns:
        Its length in micrometers, and what to write beside it: "200 µm", "5 mm".
    """
    limit = width_um * BAR_SHARE
    exponent = math.floor(math.log10(limit))
    # One power less as well: the logarithm may have been rounded up to a whole number.
    lengths = (digit * 10.0**power for power in (exponent - 1, exponent) for digit in (1, 2, 5))
    length = max(length for length in lengths if length <= limit)
    return length, f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"


def number_places(pictures: SlidePictures) -> list[numbers.Place]:
    """Where on the map the numbers of the classes go."""
    return numbers.places(pictures.labels, len(pictures.classes), NUMBER_SIDE)


def thumbnail_jpeg(pictures: SlidePictures) -> bytes:
    """The thumbnail as a JPEG file, a fifth of its PNG."""
    return _encoded(Image.fromarray(pictures.thumbnail), "JPEG", quality=88)


def map_png(pictures: SlidePictures) -> bytes:
    """The label map as a palette PNG in the thumbnail's size; the excluded is transparent."""
    return _layer(pictures.labels, pictures)


def outlines_png(pictures: SlidePictures) -> bytes:
    """The outlines of the map's regions as a palette PNG; all else is transparent."""
    excluded = len(pictures.classes)
    edges = _edges(pictures.labels, excluded)
    return _layer(np.where(edges, pictures.labels, np.uint8(excluded)), pictures)


def _tinted(pictures: SlidePictures) -> np.ndarray:
    labels, palette = pictures.labels, pictures.palette
    tinted = figures.overlay(pictures.thumbnail, labels, palette)
    edges = _edges(labels, len(pictures.classes))
    tinted[edges] = figures.colorize(labels[edges], palette)
    return tinted


def _edges(labels: np.ndarray, excluded: int) -> np.ndarray:
    """(h, w) bool: pixels of a class up to `OUTLINE` away, along an axis, from another value."""
    edges = np.zeros(labels.shape, bool)
    for distance in range(1, OUTLINE + 1):
        across = labels[:, distance:] != labels[:, :-distance]
        down = labels[distance:] != labels[:-distance]
        edges[:, distance:] |= across
        edges[:, :-distance] |= across
        edges[distance:] |= down
        edges[:-distance] |= down
    return edges & (labels != excluded)


def _layer(labels: np.ndarray, pictures: SlidePictures) -> bytes:
    image = Image.fromarray(labels).convert("P")
    image.putpalette(np.asarray(pictures.palette, np.uint8).tobytes())
    return _encoded(image, "PNG", optimize=True, transparency=len(pictures.classes))


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
