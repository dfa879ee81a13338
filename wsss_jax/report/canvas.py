"""A page of pictures in rows and columns, with headings, captions and a legend of colors.

Everything is placed on whole pixels and label maps are resized to their nearest pixel, so that a
class has exactly its palette's color wherever it is drawn.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsss_jax.files import atomic_path
from wsss_jax.report.numbers import Place

Color = tuple[int, int, int]

INK: Color = (34, 34, 34)
FRAME: Color = (187, 187, 187)
PAPER: Color = (255, 255, 255)

MARGIN = 24
GAP = 10
BLOCK_GAP = 36
CAPTION_HEIGHT = 26
HEADING_HEIGHT = 26
TITLE_HEIGHT = 38
LEGEND_HEIGHT = 28
SWATCH = 14
CELL = 224  # side of a cell, pixels
NUMBER = 13  # size of a class's number on a map, pixels
NUMBER_SIDE = NUMBER + 6  # of its box


class Picture(NamedTuple):
    """One cell: (H, W, 3) uint8, and whether it is a photograph or flat colors.

    `places` are the numbers to write on it.
    """

    pixels: np.ndarray
    photograph: bool
    places: Sequence[Place] = ()


class Row(NamedTuple):
    """Cells from left to right; above them a caption, swatches for its labels, a note at right."""

    pictures: Sequence[Picture]
    caption: str = ""
    swatches: Sequence[tuple[Color, str]] = ()
    note: str = ""


class _Page:
    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.photographs = np.zeros((height, width), bool)
        self.flat_colors: set[Color] = {INK, FRAME, PAPER}


def write_page(
    path: Path | str,
    rows: Sequence[Row],
    headings: Sequence[str],
    legend: Sequence[tuple[Color, str]],
    *,
    title: str = "",
    tile: int = CELL,
    rows_abreast: int = 1,
) -> None:
    """Draw the rows and write them as a PNG of 256 colors, atomically.

    Args:
        path: where to write; parents are created.
        rows: at least one, each with a picture per heading; they are scaled to fit a square cell.
        headings: one per column.
        legend: (color, name) pairs, wrapped to the width of the page.
        title: printed large on top if given.
        tile: side of a cell in pixels.
        rows_abreast: how many rows lie side by side, if there are as many.
    """
    rows_abreast = min(rows_abreast, len(rows))
    captions = any(row.caption or row.note or row.swatches for row in rows)
    caption_height = CAPTION_HEIGHT if captions else 0
    row_width = len(headings) * (tile + GAP) - GAP
    row_height = caption_height + tile + GAP
    width = 2 * MARGIN + rows_abreast * (row_width + BLOCK_GAP) - BLOCK_GAP
    legend_lines = _wrap_legend(legend, width - 2 * MARGIN)
    top = MARGIN + (TITLE_HEIGHT if title else 0)
    rows_top = top + HEADING_HEIGHT
    legend_top = rows_top + -(-len(rows) // rows_abreast) * row_height + GAP
    page = _Page(width, legend_top + len(legend_lines) * LEGEND_HEIGHT - GAP + MARGIN)
    if title:
        title = _elide(title, _font(20, bold=True), width - 2 * MARGIN)
        page.draw.text((MARGIN, MARGIN + 18), title, INK, _font(20, bold=True), anchor="ls")
    for abreast in range(rows_abreast):
        for column, heading in enumerate(headings):
            center = MARGIN + abreast * (row_width + BLOCK_GAP) + column * (tile + GAP) + tile // 2
            heading = _elide(heading, _font(14), tile)
            page.draw.text((center, top + 15), heading, INK, _font(14), anchor="ms")
    for index, row in enumerate(rows):
        left = MARGIN + index % rows_abreast * (row_width + BLOCK_GAP)
        y = rows_top + index // rows_abreast * row_height
        if captions:
            _draw_caption(page, row, left, y, row_width)
        for column, picture in enumerate(row.pictures):
            _draw_picture(page, picture, left + column * (tile + GAP), y + caption_height, tile)
    for number, line in enumerate(legend_lines):
        x = MARGIN
        for color, name in line:
            middle = legend_top + number * LEGEND_HEIGHT + SWATCH // 2
            x = _draw_swatch(page, color, name, x, middle, _font(14)) + 24
    with atomic_path(path) as temporary:
        _to_palette(page).save(temporary, "PNG", optimize=True)


@lru_cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _draw_caption(page: _Page, row: Row, left: int, top: int, width: int) -> None:
    baseline, right = top + CAPTION_HEIGHT - 9, left + width
    name_font, font = _font(13, bold=True), _font(13)
    if row.note:
        page.draw.text((right, baseline), row.note, INK, name_font, anchor="rs")
        right -= int(name_font.getlength(row.note)) + 16
    swatches_width = sum(_swatch_width(name, font) + 14 for _, name in row.swatches)
    caption = _elide(row.caption, name_font, right - left - swatches_width - 16)
    page.draw.text((left, baseline), caption, INK, name_font, anchor="ls")
    x = left + int(name_font.getlength(caption)) + (16 if caption else 0)
    for color, name in row.swatches:
        if x + _swatch_width(name, font) > right:
            break
        x = _draw_swatch(page, color, name, x, baseline - 5, font) + 14


def _draw_picture(page: _Page, picture: Picture, left: int, top: int, tile: int) -> None:
    height, width = picture.pixels.shape[:2]
    size = tuple(max(1, round(side * tile / max(height, width))) for side in (width, height))
    method = Image.Resampling.LANCZOS if picture.photograph else Image.Resampling.NEAREST
    fitted = Image.fromarray(picture.pixels).resize(size, method)
    x, y = left + (tile - size[0]) // 2, top + (tile - size[1]) // 2
    page.image.paste(fitted, (x, y))
    page.photographs[y : y + size[1], x : x + size[0]] = picture.photograph
    for place in picture.places:
        at = (x + (place.x + 0.5) * size[0] / width, y + (place.y + 0.5) * size[1] / height)
        _draw_number(page, place.value, *map(round, at))
    page.draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=FRAME)
    if not picture.photograph:
        codes = np.unique(_codes(picture.pixels)).tolist()
        page.flat_colors.update((code >> 16, code >> 8 & 255, code & 255) for code in codes)


def _draw_swatch(
    page: _Page, color: Color, name: str, left: int, middle: int, font: ImageFont.FreeTypeFont
) -> int:
    top = middle - SWATCH // 2
    page.flat_colors.add(color)
    page.draw.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), color, FRAME)
    page.draw.text((left + SWATCH + 6, middle + 5), name, INK, font, anchor="ls")
    return left + _swatch_width(name, font)


def _draw_number(page: _Page, value: int, x: int, y: int) -> None:
    """A class's number around (x, y), dark on a light box, which reads on every color."""
    font = _font(NUMBER, bold=True)
    half_width = max(NUMBER_SIDE, math.ceil(font.getlength(str(value))) + 6) // 2
    half = NUMBER_SIDE // 2
    box = (x - half_width, y - half, x + half_width, y + half)
    page.draw.rectangle(box, PAPER, FRAME)
    page.draw.text((x, y), str(value), INK, font, anchor="mm")


def _swatch_width(name: str, font: ImageFont.FreeTypeFont) -> int:
    return SWATCH + 6 + int(font.getlength(name))


def _wrap_legend(legend: Sequence[tuple[Color, str]], width: int) -> list[list[tuple[Color, str]]]:
    lines: list[list[tuple[Color, str]]] = []
    free = 0
    for entry in legend:
        needed = _swatch_width(entry[1], _font(14))
        if not lines or needed > free:
            lines.append([])
            free = width
        lines[-1].append(entry)
        free -= needed + 24
    return lines


def _elide(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Shorten in the middle: both ends of a patch's name tell it from its neighbors."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        if font.getlength(short) <= width:
            return short
    return ""


def _to_palette(page: _Page) -> Image.Image:
    """Reduce to 256 colors, a third of the file: flat colors exactly, photographs adaptively."""
    pixels = np.asarray(page.image)
    drawn = ~page.photographs
    flat = np.array(sorted(page.flat_colors))
    greys = np.arange(0, 256, 17)[:, None].repeat(3, axis=1)  # the smoothed edges of the text
    colors, first = np.unique(_codes(np.concatenate([flat, greys])), return_index=True)
    colors = np.concatenate([flat, greys])[first]
    codes = _codes(pixels[drawn])
    edges = ~np.isin(codes, _codes(flat))
    codes[edges] = _codes((pixels[drawn][edges].astype(np.int32) + 8) // 17 * 17)
    indices = np.zeros(drawn.shape, np.uint8)
    indices[drawn] = np.searchsorted(_codes(colors), codes)
    if page.photographs.any():
        strip = Image.fromarray(pixels[page.photographs][None])
        strip = strip.quantize(256 - len(colors), dither=Image.Dither.NONE)
        indices[page.photographs] = np.asarray(strip)[0] + len(colors)
        colors = np.concatenate([colors, np.reshape(strip.getpalette(), (-1, 3))])
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colors.astype(np.uint8).tobytes())
    return image


def _codes(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) colors as (...) integers of 24 bits, which sort and compare fast."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue
