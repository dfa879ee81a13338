"""Checks of TIFF headers, before pixels are read or memory is allocated for them.

OpenSlide and its libraries end the process where a header claims more than the file holds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tifffile

from wsss_jax.errors import InputError
from wsss_jax.slides.reading.ome import count_planes
from wsss_jax.slides.reading.raw_slide import CONVERT, check_size

SEGMENT_BYTES = 128 << 20  # of a decoded tile or strip
COLORS = {  # photometric interpretation -> samples per pixel, without transparency
    tifffile.PHOTOMETRIC.RGB: 3,
    tifffile.PHOTOMETRIC.YCBCR: 3,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
}
# The same for colors that OpenSlide turns into RGB, and `tiff_pixels` does not.
OTHER_COLORS = {
    tifffile.PHOTOMETRIC.MINISWHITE: 1,
    tifffile.PHOTOMETRIC.PALETTE: 1,
    tifffile.PHOTOMETRIC.SEPARATED: 4,
    tifffile.PHOTOMETRIC.CIELAB: 3,
}
SEPARATE = tifffile.PLANARCONFIG.SEPARATE
REDUCED, MASK = 1, 4  # flags of NewSubfileType
_ORIENTATION = 274
MAX_PAGES = 10_000  # tifffile takes a second for so many
_MAX_PLANES = 2**16  # named in metadata; tifffile makes a list of all

Page: TypeAlias = "tifffile.TiffPage | tifffile.TiffFrame"


def check_header(path: Path) -> None:
    """Refuses a file that claims more than it can hold, before memory is allocated for it.

    Raises:
      InputError: a page longer than any slide, with tiles that are too large or beyond the end of
        the file, or with more tiles than its table has; a circle of pages; or more pages or planes
        than any slide has.
    """
    file_bytes = path.stat().st_size
    with tifffile.TiffFile(path) as file:
        for page in iterate_pages(path, file):
            check_size(path, ((page.imagewidth, page.imagelength),), file_bytes)
            if page.is_tiled:
                check_segment(path, page)
                check_table(path, page, file_bytes)
        planes = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
        if file.is_ome:
            planes = count_planes(file.ome_metadata)
        if planes > _MAX_PLANES:
            raise InputError(f"{path}: {planes:,} planes; save it as one 8-bit RGB picture")


def iterate_pages(path: Path, file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Yields the pages of a file, each before the pages in its SubIFDs.

    Raises:
      InputError: the pages lead in a circle, or there are too many.
    """
    chain: set[int] = set()
    seen: set[int] = set()
    for first in file.pages:
        if first.offset in chain:  # tifffile would not end
            raise InputError(f"{path}: its pages lead in a circle; copy the slide again")
        chain.add(first.offset)
        following = [first]
        while following:
            page = following.pop()
            if page.offset in seen:
                continue
            seen.add(page.offset)
            if len(seen) > MAX_PAGES:
                raise InputError(
                    f"{path}: over {MAX_PAGES:,} pages; save the slide as a file of its own"
                )
            yield page
            for index, offset in enumerate(page.subifds or ()):
                if offset >= 8:  # after the file's own header
                    file.filehandle.seek(offset)
                    following.append(tifffile.TiffPage(file, (page.index, index)))


def get_segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """Returns the width and height of the tiles of a page, or of its strips, in pixels."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip, page.imagelength)


def check_segment(path: Path, page: tifffile.TiffPage) -> None:
    """Refuses tiles or strips without pixels, or too large to be decoded.

    Raises:
      InputError: such tiles or strips.
    """
    wide, tall = get_segment_size(page)
    if min(wide, tall) < 1:
        raise InputError(f"{path}: tiles of {wide} x {tall} pixels; copy the slide again")
    deep = page.tiledepth if page.is_tiled else 1
    if tall * wide * deep * page.samplesperpixel > SEGMENT_BYTES:
        raise InputError(
            f"{path}: {page.imagewidth} x {page.imagelength} pixels in pieces of {wide} x {tall}, "
            f"which need too much memory; {CONVERT}"
        )


def check_table(path: Path, member: Page, file_bytes: int) -> None:
    """Refuses a table that lacks tiles or strips, or has some beyond the end of the file.

    Raises:
      InputError: such a table.
    """
    page = member.keyframe
    wide, tall = get_segment_size(page)
    planes = page.samplesperpixel if page.planarconfig == SEPARATE else 1
    needed = -(-page.imagewidth // wide) * -(-page.imagelength // tall) * planes
    offsets, counts = member.dataoffsets, member.databytecounts
    if min(len(offsets), len(counts)) < needed:
        raise InputError(f"{path}: its table of tiles is cut short; copy the slide again")
    # A tile of no bytes was left out, wherever its offset points.
    ends = (offset + count for offset, count in zip(offsets, counts) if count)
    if max(ends, default=0) > file_bytes:
        raise InputError(f"{path}: cut short; copy the slide again")


def note_orientation(page: tifffile.TiffPage) -> tuple[str, ...]:
    """Returns a note if the Orientation tag asks to turn the slide; else none."""
    orientation = page.tags.valueof(_ORIENTATION, 1)
    if orientation not in range(2, 9):
        return ()
    return (f"its Orientation tag ({orientation}) is not obeyed, as in viewers of slides",)


def describe_page(page: tifffile.TiffPage) -> str:
    """Describes the pixels of a page: "YXS (480, 640, 3) of uint16 (RGB)"."""
    return f"{page.axes} {page.shape} of {page.dtype} ({page.photometric.name})"


def check_openslide(path: Path) -> tuple[str, ...]:
    """Refuses a file with tiled pixels that are not 8-bit colors, which OpenSlide shows wrongly.

    The levels of all vendors are tiled. OpenSlide takes of 16 bits the upper 8, every fourth sample
    for transparency, and masks of transparency for levels.

    Returns:
      notes on the slide.

    Raises:
      InputError: such pixels.
    """
    with tifffile.TiffFile(path) as file:
        for page in iterate_pages(path, file):
            # A page of other colors has no number of samples here, and is refused, too.
            if page.is_tiled and (
                page.dtype != np.uint8
                or page.subfiletype & MASK
                or page.bitspersample != 8
                or page.imagedepth != 1
                or page.samplesperpixel != (COLORS | OTHER_COLORS).get(page.photometric)
            ):
                raise InputError(f"{path}: {describe_page(page)}; save it as one 8-bit RGB picture")
        return note_orientation(file.pages.first)
