"""Headers of TIFF files: checked before anything is read or allocated for them.

OpenSlide and its libraries end the process where a header claims more than there is.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from wsss_jax.errors import InputError
from wsss_jax.slides.reading.opened import CONVERT, check_size

SEGMENT_BYTES = 128 << 20  # of a decoded tile or strip
COLORS = {  # samples of a pixel that make its color
    tifffile.PHOTOMETRIC.RGB: 3,
    tifffile.PHOTOMETRIC.YCBCR: 3,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
}
# Likewise, of those that OpenSlide turns into RGB and this program does not.
OTHER_COLORS = {
    tifffile.PHOTOMETRIC.MINISWHITE: 1,
    tifffile.PHOTOMETRIC.PALETTE: 1,
    tifffile.PHOTOMETRIC.SEPARATED: 4,
    tifffile.PHOTOMETRIC.CIELAB: 3,
}
SEPARATE = tifffile.PLANARCONFIG.SEPARATE
REDUCED, MASK = 1, 4  # flags of NewSubfileType
_ORIENTATION = 274
_MOST_PAGES = 10_000  # tifffile takes a second for so many
_MOST_PLANES = 2**16  # that metadata may name; tifffile makes a list of all

Page = tifffile.TiffPage | tifffile.TiffFrame


def check_header(path: Path) -> None:
    """Refuses a file that claims more than it can hold, before anything is allocated for it.

    Raises:
      InputError: a page longer than any slide, of tiles that are too large or beyond the end of the
        file, or of more tiles than its table has; pages that lead in a circle; or more pages or
        planes than any slide has.
    """
    file_bytes = path.stat().st_size
    with tifffile.TiffFile(path) as file:
        for page in all_pages(path, file):
            check_size(path, ((page.imagewidth, page.imagelength),), file_bytes)
            if page.is_tiled:
                check_segment(path, page, page.tilewidth, page.tilelength)
                check_table(path, page, file_bytes)
        planes = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
        if file.is_ome:
            pixels = ome_elements(ElementTree.fromstring(file.ome_metadata), "Pixels")
            planes = sum(map(_count_planes, pixels))
        if planes > _MOST_PLANES:
            raise InputError(f"{path}: {planes:,} planes; save it as one 8-bit RGB picture")


def all_pages(path: Path, file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """The pages of a file, each before those in its SubIFDs.

    Raises:
      InputError: they lead in a circle, or are too many.
    """
    chain: set[int] = set()
    seen: set[int] = set()
    for first in file.pages:
        if first.offset in chain:  # tifffile would go on for ever
            raise InputError(f"{path}: its pages lead in a circle; copy the slide again")
        chain.add(first.offset)
        following = [first]
        while following:
            page = following.pop()
            if page.offset in seen:
                continue
            seen.add(page.offset)
            if len(seen) > _MOST_PAGES:
                raise InputError(
                    f"{path}: over {_MOST_PAGES:,} pages; save the slide to use by itself"
                )
            yield page
            for index, offset in enumerate(page.subifds or ()):
                if offset >= 8:  # after the file's own header
                    file.filehandle.seek(offset)
                    following.append(tifffile.TiffPage(file, (page.index, index)))


def _count_planes(pixels: ElementTree.Element) -> int:
    """The most that an image of OME's metadata has, by any of the numbers that say so."""
    sizes = math.prod(int(pixels.get(f"Size{axis}", 1)) for axis in "CZT")
    given = [
        int(data.get(field, 0))
        for data in ome_elements(pixels, "TiffData")
        for field in ("PlaneCount", "NumPlanes", "IFD")
    ]
    return max(sizes, *given, 1)


def ome_elements(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Those of a name in any version of OME's namespace."""
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def check_segment(path: Path, page: tifffile.TiffPage, wide: int, tall: int) -> None:
    """Refuses tiles or strips without pixels, or too large to be decoded.

    Raises:
      InputError: likewise.
    """
    if min(wide, tall) < 1:
        raise InputError(f"{path}: tiles of {wide} x {tall} pixels; copy the slide again")
    deep = page.tiledepth if page.is_tiled else 1
    if tall * wide * deep * page.samplesperpixel > SEGMENT_BYTES:
        raise InputError(
            f"{path}: {page.imagewidth} x {page.imagelength} pixels in pieces of {wide} x {tall}, "
            f"which need too much memory; {CONVERT}"
        )


def check_table(path: Path, member: Page, file_bytes: int) -> None:
    """Refuses a table of fewer tiles or strips than the page has, or of some beyond the file.

    Raises:
      InputError: likewise.
    """
    page = member.keyframe
    wide, tall = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, None)
    tall = tall or min(page.rowsperstrip, page.imagelength)
    planes = page.samplesperpixel if page.planarconfig == SEPARATE else 1
    needed = -(-page.imagewidth // wide) * -(-page.imagelength // tall) * planes
    offsets, counts = member.dataoffsets, member.databytecounts
    if min(len(offsets), len(counts)) < needed:
        raise InputError(f"{path}: its table of tiles is cut short; copy the slide again")
    # One of no bytes is a tile that was left out, wherever it is said to be.
    ends = (offset + count for offset, count in zip(offsets, counts) if count)
    if max(ends, default=0) > file_bytes:
        raise InputError(f"{path}: cut short; copy the slide again")


def check_pixels(path: Path, page: tifffile.TiffPage) -> None:
    """Refuses pixels that are no 8-bit colors, which OpenSlide would show as some.

    It takes of 16 bits the upper 8, and every fourth sample for transparency.

    Raises:
      InputError: likewise.
    """
    samples = (COLORS | OTHER_COLORS).get(page.photometric)
    if (
        page.dtype != np.uint8
        or page.subfiletype & MASK
        or page.bitspersample != 8
        or page.imagedepth != 1
        or samples is None
        or page.samplesperpixel != samples
    ):
        raise InputError(f"{path}: {describe(page)}; save it as one 8-bit RGB picture")


def orientation_note(page: tifffile.TiffPage) -> tuple[str, ...]:
    """A note on a slide that its Orientation tag wants to be shown turned; else none."""
    orientation = page.tags.valueof(_ORIENTATION, 1)
    if orientation not in range(2, 9):
        return ()
    return (f"its Orientation tag ({orientation}) is not obeyed, as in viewers of slides",)


def describe(page: tifffile.TiffPage) -> str:
    """What the pixels of a page are ("YXS (480, 640, 3) of uint16 (RGB)")."""
    return f"{page.axes} {page.shape} of {page.dtype} ({page.photometric.name})"


def check_openslide(path: Path) -> tuple[str, ...]:
    """Refuses a file with tiles of other pixels than OpenSlide shows right.

    Its levels, of any vendor, are in tiles. It takes masks of transparency for levels, too.

    Returns:
      notes on what is odd.

    Raises:
      InputError: see `check_pixels`.
    """
    with tifffile.TiffFile(path) as file:
        for page in all_pages(path, file):
            if page.is_tiled:
                check_pixels(path, page)
        return orientation_note(file.pages.first)
