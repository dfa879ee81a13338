"""Drawing on a page: pictures in rows and columns, headings, captions, a legend, numbers.

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
from wsss_jax.report.legend import Color
from wsss_jax.report.numbers import Place

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
NUMBER_SIDE = NUMBER + 6  # side of its box


class Picture(NamedTuple):
    """What a cell shows.

    Attributes:
      pixels: (H, W, 3) uint8 RGB.
      photograph: False for flat colors, which keep their exact values.
      places: of the numbers to write on it.
    """

    pixels: np.ndarray
    photograph: bool
    places: Sequence[Place] = ()


class Row(NamedTuple):
    """Cells from left to right, and a line above them.

    Attributes:
      pictures: one per cell.
      caption, swatches: at the left of the line; swatches are (color, name) pairs.
      note: at the right of the line.
    """

    pictures: Sequence[Picture]
    caption: str = ""
    swatches: Sequence[tuple[Color, str]] = ()
    note: str = ""


class Page:
    """A white image to draw on.

    Attributes:
      image, draw: the RGB image, and what draws on it.
      photographs: (height, width) bool, the pixels of photographs.
      flat_colors: the colors that keep their exact values in a file of 256 colors.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.photographs = np.zeros((height, width), bool)
        self.flat_colors: set[Color] = {INK, FRAME, PAPER}


class Layout(NamedTuple):
    """How the rows of a page are laid out.

    Attributes:
      title: printed large on top; "" for none.
      tile: side of a cell in pixels.
      side_by_side: how many rows lie side by side, if there are as many.
    """

    title: str = ""
    tile: int = CELL
    side_by_side: int = 1


PLAIN = Layout()


def write_page(
    path: Path | str,
    rows: Sequence[Row],
    headings: Sequence[str],
    entries: Sequence[tuple[Color, str]],
    layout: Layout = PLAIN,
) -> None:
    """Draws the rows and writes them as a PNG of 256 colors, atomically.

    Args:
      path: where to write; parents are created.
      rows: at least one, each with a picture per heading; they are scaled to fit a square cell.
      headings: one per column.
      entries: (color, name) pairs of the legend, wrapped to the width of the page.
      layout: of the page.
    """
    title, tile, _ = layout
    side_by_side = min(layout.side_by_side, len(rows))
    captions = any(row.caption or row.note or row.swatches for row in rows)
    caption_height = CAPTION_HEIGHT if captions else 0
    row_width = len(headings) * (tile + GAP) - GAP
    row_height = caption_height + tile + GAP
    width = 2 * MARGIN + side_by_side * (row_width + BLOCK_GAP) - BLOCK_GAP
    legend_lines = wrap_legend(entries, width - 2 * MARGIN)
    top = MARGIN + (TITLE_HEIGHT if title else 0)
    rows_top = top + HEADING_HEIGHT
    legend_top = rows_top + -(-len(rows) // side_by_side) * row_height + GAP
    page = Page(width, legend_top + len(legend_lines) * LEGEND_HEIGHT - GAP + MARGIN)
    if title:
        font = load_font(20, bold=True)
        title = shorten_text(title, font, width - 2 * MARGIN)
        page.draw.text((MARGIN, MARGIN + 18), title, INK, font, anchor="ls")
    for block in range(side_by_side):
        for column, heading in enumerate(headings):
            center = MARGIN + block * (row_width + BLOCK_GAP) + column * (tile + GAP) + tile // 2
            heading = shorten_text(heading, load_font(14), tile)
            page.draw.text((center, top + 15), heading, INK, load_font(14), anchor="ms")
    for index, row in enumerate(rows):
        left = MARGIN + index % side_by_side * (row_width + BLOCK_GAP)
        y = rows_top + index // side_by_side * row_height
        if captions:
            _draw_caption(page, row, left, y, row_width)
        for column, picture in enumerate(row.pictures):
            _draw_picture(page, picture, left + column * (tile + GAP), y + caption_height, tile)
    draw_legend(page, legend_lines, legend_top)
    with atomic_path(path) as temporary:
        _reduce_colors(page).save(temporary, "PNG", optimize=True)


def draw_legend(page: Page, lines: Sequence[Sequence[tuple[Color, str]]], top: int) -> None:
    """Draws the lines of `wrap_legend`, each from the left margin on."""
    for number, line in enumerate(lines):
        x, middle = MARGIN, top + number * LEGEND_HEIGHT + SWATCH // 2
        for color, name in line:
            x = _draw_swatch(page, color, name, x, middle, load_font(14)) + 24


@lru_cache
def load_font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Loads the font that comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _draw_caption(page: Page, row: Row, left: int, top: int, width: int) -> None:
    baseline, right = top + CAPTION_HEIGHT - 9, left + width
    name_font, font = load_font(13, bold=True), load_font(13)
    if row.note:
        page.draw.text((right, baseline), row.note, INK, name_font, anchor="rs")
        right -= int(name_font.getlength(row.note)) + 16
    swatches_width = sum(_measure_swatch(name, font) + 14 for _, name in row.swatches)
    caption = shorten_text(row.caption, name_font, right - left - swatches_width - 16)
    page.draw.text((left, baseline), caption, INK, name_font, anchor="ls")
    x = left + int(name_font.getlength(caption)) + (16 if caption else 0)
    for color, name in row.swatches:
        if x + _measure_swatch(name, font) > right:
            break
        x = _draw_swatch(page, color, name, x, baseline - 5, font) + 14


def _draw_picture(page: Page, picture: Picture, left: int, top: int, tile: int) -> None:
    height, width = picture.pixels.shape[:2]
    size = tuple(max(1, round(side * tile / max(height, width))) for side in (width, height))
    method = Image.Resampling.LANCZOS if picture.photograph else Image.Resampling.NEAREST
    fitted = Image.fromarray(picture.pixels).resize(size, method)
    x, y = left + (tile - size[0]) // 2, top + (tile - size[1]) // 2
    page.image.paste(fitted, (x, y))
    page.photographs[y : y + size[1], x : x + size[0]] = picture.photograph
    for place in picture.places:
        at = (x + (place.x + 0.5) * size[0] / width, y + (place.y + 0.5) * size[1] / height)
        draw_number(page, place.value, *map(round, at))
    page.draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=FRAME)
    if not picture.photograph:
        codes = np.unique(_encode_colors(picture.pixels)).tolist()
        page.flat_colors.update((code >> 16, code >> 8 & 255, code & 255) for code in codes)


def _draw_swatch(
    page: Page, color: Color, name: str, left: int, middle: int, font: ImageFont.FreeTypeFont
) -> int:
    """Draws a swatch with its name and returns the x at which they end."""
    top = middle - SWATCH // 2
    page.flat_colors.add(color)
    page.draw.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), color, FRAME)
    page.draw.text((left + SWATCH + 6, middle + 5), name, INK, font, anchor="ls")
    return left + _measure_swatch(name, font)


def draw_number(page: Page, value: int, x: int, y: int) -> None:
    """Draws a class's number at (x, y), dark in a light box, readable on every color."""
    font = load_font(NUMBER, bold=True)
    half_width = max(NUMBER_SIDE, math.ceil(font.getlength(str(value))) + 6) // 2
    half = NUMBER_SIDE // 2
    box = (x - half_width, y - half, x + half_width, y + half)
    page.draw.rectangle(box, PAPER, FRAME)
    page.draw.text((x, y), str(value), INK, font, anchor="mm")


def _measure_swatch(name: str, font: ImageFont.FreeTypeFont) -> int:
    return SWATCH + 6 + int(font.getlength(name))


def wrap_legend(entries: Sequence[tuple[Color, str]], width: int) -> list[list[tuple[Color, str]]]:
    """Breaks the (color, name) pairs of a legend into lines of `width` pixels."""
    lines: list[list[tuple[Color, str]]] = []
    free = 0
    for entry in entries:
        needed = _measure_swatch(entry[1], load_font(14))
        if not lines or needed > free:
            lines.append([])
            free = width
        lines[-1].append(entry)
        free -= needed + 24
    return lines


def shorten_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Shortens a text in its middle: names of patches differ at either end."""
    if font.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = text[: (length + 1) // 2] + "…" + text[len(text) - length // 2 :]
        if font.getlength(short) <= width:
            return short
    return ""


def _reduce_colors(page: Page) -> Image.Image:
    """Reduces a page to 256 colors, a third of the bytes.

    Flat colors stay exact; photographs get the colors that suit them best.
    """
    pixels = np.asarray(page.image)
    drawn = ~page.photographs
    flat = np.array(sorted(page.flat_colors))
    grays = np.arange(0, 256, 17)[:, None].repeat(3, axis=1)  # for the smooth edges of text
    colors, first = np.unique(_encode_colors(np.concatenate([flat, grays])), return_index=True)
    colors = np.concatenate([flat, grays])[first]
    codes = _encode_colors(pixels[drawn])
    edges = ~np.isin(codes, _encode_colors(flat))
    codes[edges] = _encode_colors((pixels[drawn][edges].astype(np.int32) + 8) // 17 * 17)
    indices = np.zeros(drawn.shape, np.uint8)
    indices[drawn] = np.searchsorted(_encode_colors(colors), codes)
    if page.photographs.any():
        strip = Image.fromarray(pixels[page.photographs][None])
        strip = strip.quantize(256 - len(colors), dither=Image.Dither.NONE)
        indices[page.photographs] = np.asarray(strip)[0] + len(colors)
        colors = np.concatenate([colors, np.array(strip.getpalette()).reshape(-1, 3)])
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colors.astype(np.uint8).tobytes())
    return image


def _encode_colors(pixels: np.ndarray) -> np.ndarray:
    """Converts (..., 3) colors to (...) integers of 24 bits, which sort and compare fast."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue
