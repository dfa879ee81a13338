"""Pictures of a slide and its tissue map, about 1200 pixels large.

Outlines, legend and map have exactly the palette's colors; the scale bar is right to the pixel.
Numbers in the legend and on the map tell the classes apart for those who cannot tell the colors.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from wsss_jax.files import atomic_path
from wsss_jax.report import canvas, figures, numbers
from wsss_jax.report.canvas import GAP, INK, LEGEND_HEIGHT, MARGIN, SWATCH
from wsss_jax.report.legend import Legend

THUMBNAIL = "thumbnail.png"
OVERLAY = "overlay.png"
SMALL = "small.jpg"
PREVIEW = "preview.png"  # of a map that is not finished

SMALL_SIDE = 240
NARROWEST_PAGE = 360
BAR_SHARE = 0.25  # longest scale bar, as a share of the picture's width
BAR_HEIGHT = 6
OUTLINE = 1  # pixels on either side of a border


class SlidePictures(NamedTuple):
    """What the pictures of a slide are made from.

    Attributes:
      thumbnail: (h, w, 3) uint8 RGB.
      labels: (h, w) uint8 of 0..C, for the same pixels.
      um_per_pixel: side of one of these pixels, in micrometers.
      legend: of the C classes.
    """

    thumbnail: np.ndarray
    labels: np.ndarray
    um_per_pixel: float
    legend: Legend


def write_pictures(folder: Path | str, pictures: SlidePictures) -> None:
    """Writes `thumbnail.png`, `overlay.png` and, for the index of a cohort, `small.jpg`."""
    small = Image.fromarray(_tint_and_outline(pictures))
    small.thumbnail((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS)
    for name, data in (
        (THUMBNAIL, _encode(Image.fromarray(pictures.thumbnail), "PNG")),
        (OVERLAY, _encode(Image.fromarray(draw_overlay(pictures)), "PNG")),
        (SMALL, _encode(small, "JPEG", quality=85, subsampling=0)),
    ):
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_bytes(data)


def draw_overlay(pictures: SlidePictures) -> np.ndarray:
    """Draws the slide tinted by class, with outlines, numbers, a legend and a scale bar.

    Returns:
      (h', w', 3) uint8 RGB, the picture unscaled with its upper left corner at (MARGIN, MARGIN).
    """
    return draw_framed(_tint_and_outline(pictures), pictures, place_numbers(pictures))


def draw_framed(
    picture: np.ndarray,
    pictures: SlidePictures,
    places: Sequence[numbers.Place] = (),
    title: Sequence[str] = (),
) -> np.ndarray:
    """Draws a picture with a frame, a legend and a scale bar.

    Args:
      picture: (h, w, 3) uint8 RGB.
      pictures: with the legend, and how large the pixels of `picture` are.
      places: of the numbers to write on it.
      title: lines above it, shortened to its width.

    Returns:
      (h', w', 3) uint8 RGB, the picture unscaled, MARGIN from the left and, below the title, from
      the top.
    """
    height, width = picture.shape[:2]
    inner = max(width, NARROWEST_PAGE)
    length_um, bar_text = choose_scale_bar(width * pictures.um_per_pixel)
    bar = max(1, round(length_um / pictures.um_per_pixel))
    font = canvas.load_font(14)
    for_legend = inner - bar - math.ceil(font.getlength(bar_text)) - 4 * GAP
    longest = for_legend - SWATCH - GAP
    entries = [
        (color, canvas.shorten_text(name, font, longest))
        for color, name in pictures.legend.list_entries()
    ]
    lines = canvas.wrap_legend(entries, for_legend)
    left, top = MARGIN, MARGIN + len(title) * canvas.HEADING_HEIGHT
    below = top + height + 2 * GAP
    page = canvas.Page(inner + 2 * MARGIN, below + len(lines) * LEGEND_HEIGHT - GAP + MARGIN)
    for number, line in enumerate(title):
        at = left, MARGIN + number * canvas.HEADING_HEIGHT + SWATCH
        page.draw.text(at, canvas.shorten_text(line, font, inner), INK, font, anchor="ls")
    page.image.paste(Image.fromarray(picture), (left, top))
    for place in places:
        canvas.draw_number(page, place.value, left + place.x, top + place.y)
    page.draw.rectangle((left - 1, top - 1, left + width, top + height), outline=canvas.FRAME)
    canvas.draw_legend(page, lines, below)
    right, middle = left + inner, below + SWATCH // 2
    bar_top = middle - BAR_HEIGHT // 2
    page.draw.rectangle((right - bar, bar_top, right - 1, bar_top + BAR_HEIGHT - 1), INK)
    page.draw.text((right - bar - GAP, middle + 5), bar_text, INK, font, anchor="rs")
    return np.asarray(page.image)


def write_preview(
    path: Path, pictures: SlidePictures, pale: np.ndarray, title: Sequence[str]
) -> None:
    """Writes the picture of a map that is not finished, atomically.

    Args:
      path: of the PNG file.
      pictures: with the labels that there are; what is not known is excluded.
      pale: (h, w) bool, where labels are a guess: they are drawn half as strong.
      title: lines above the picture.
    """
    thumbnail, labels, _, legend = pictures
    tinted = figures.tint(thumbnail, labels, legend.palette)
    halves = (thumbnail.astype(np.uint16) + tinted) // 2
    tinted[pale] = halves[pale].astype(np.uint8)
    write_png(path, draw_framed(tinted, pictures, title=title), compression=1)


def write_png(path: Path, pixels: np.ndarray, compression: int = 6) -> None:
    """Writes a picture, (h, w, 3) uint8 RGB, atomically; `compression` is that of zlib, 0 to 9."""
    with atomic_path(path) as temporary:
        image = Image.fromarray(pixels)
        temporary.write_bytes(_encode(image, "PNG", compress_level=compression))


def choose_scale_bar(width_um: float) -> tuple[float, str]:
    """Chooses the longest of 1, 2, 5 x 10^n micrometers up to a quarter of a picture's width.

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


def place_numbers(pictures: SlidePictures) -> list[numbers.Place]:
    """Chooses where on the map the numbers of the classes go."""
    return numbers.place_numbers(pictures.labels, pictures.legend.excluded, canvas.NUMBER_SIDE)


def encode_thumbnail(pictures: SlidePictures) -> bytes:
    """Encodes the thumbnail as JPEG, a fifth of its PNG."""
    return encode_jpeg(pictures.thumbnail)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encodes a picture, (h, w, 3) uint8 RGB."""
    return _encode(Image.fromarray(pixels), "JPEG", quality=88)


def encode_map(pictures: SlidePictures) -> bytes:
    """Encodes the label map as a palette PNG, excluded pixels transparent."""
    return _encode_layer(pictures.labels, pictures.legend)


def encode_outlines(pictures: SlidePictures) -> bytes:
    """Encodes the outlines of the map's regions as a palette PNG, all else transparent."""
    labels, excluded = pictures.labels, pictures.legend.excluded
    layer = np.where(find_edges(labels, excluded), labels, np.uint8(excluded))
    return _encode_layer(layer, pictures.legend)


def _tint_and_outline(pictures: SlidePictures) -> np.ndarray:
    labels, legend = pictures.labels, pictures.legend
    tinted = figures.tint(pictures.thumbnail, labels, legend.palette)
    edges = find_edges(labels, legend.excluded)
    tinted[edges] = figures.colorize(labels[edges], legend.palette)
    return tinted


def find_edges(labels: np.ndarray, excluded: int) -> np.ndarray:
    """Returns (h, w) bool: pixels of a class up to `OUTLINE` from another value along an axis."""
    edges = np.zeros(labels.shape, bool)
    for distance in range(1, OUTLINE + 1):
        across = labels[:, distance:] != labels[:, :-distance]
        down = labels[distance:] != labels[:-distance]
        edges[:, distance:] |= across
        edges[:, :-distance] |= across
        edges[distance:] |= down
        edges[:-distance] |= down
    return edges & (labels != excluded)


def _encode_layer(labels: np.ndarray, legend: Legend) -> bytes:
    image = Image.fromarray(labels).convert("P")
    image.putpalette(np.asarray(legend.palette, np.uint8).tobytes())
    return _encode(image, "PNG", optimize=True, transparency=legend.excluded)


def _encode(image: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
