"""TIFF files by tifffile: finding the pages of the slide, and opening them."""

import logging
import math
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from wsss_jax.errors import InputError
from wsss_jax.slides.reading import ome
from wsss_jax.slides.reading.cache import Cache
from wsss_jax.slides.reading.raw_slide import (
    RawSlide,
    check_size,
    describe_other_image,
    is_level,
)
from wsss_jax.slides.reading.tiff_headers import (
    COLORS,
    MASK,
    REDUCED,
    SEGMENT_BYTES,
    Page,
    note_orientation,
)
from wsss_jax.slides.reading.tiff_pixels import LevelReader, note_dropped_samples

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SMALL = 16  # times fewer pixels than the slide: a macro image or a label, not a section
_NO_SECTIONS = ("label", "macro", "thumbnail", "overview")  # in names of images
_DYE = "|Dye"  # in Aperio's descriptions of fluorescence

# Damaged files get one line of this program; tifffile logs several.
tifffile.logger().setLevel(logging.CRITICAL)


class Picture(NamedTuple):
    """A picture of a TIFF file.

    Attributes:
      pages: the page of each level, the largest first.
      stack: the axes and shape of a stack of planes ("ZYX (3, 768, 1024)"), else "".
      series: tifffile's series with the picture.
    """

    pages: list[Page]
    stack: str
    series: tifffile.TiffPageSeries

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the largest level."""
        page = self.pages[0].keyframe
        return page.imagewidth, page.imagelength

    @property
    def pixels(self) -> int:
        """Number of pixels of the largest level."""
        return math.prod(self.size)

    def list_other_files(self, path: Path) -> list[str]:
        """Lists the names of the files with its pixels, except `path`."""
        files = {page.parent.filehandle.path: None for page in self.pages}
        return [Path(name).name for name in files if Path(name).resolve() != path.resolve()]

    @property
    def is_main(self) -> bool:
        """Whether the file marks it neither as a smaller version nor as a mask."""
        return not self.pages[0].keyframe.subfiletype & (REDUCED | MASK)


def find_slide(path: Path, file: tifffile.TiffFile) -> tuple[Picture, tuple[str, ...]]:
    """Finds the largest picture of a file; returns it and notes on others that are left out.

    In a set of OME-TIFF files each file is the slide that its own pixels show.

    Raises:
      InputError: its pixels are in other files, or it is a stack of planes.
    """
    if file.is_ome:
        ome.check_set(path, file.ome_metadata)
    all_pictures = [p for series in file.series for p in _list_pictures(path, series)]
    pictures = [p for p in all_pictures if not p.list_other_files(path)]
    elsewhere = {name: None for p in all_pictures for name in p.list_other_files(path)}
    main = [picture for picture in pictures if picture.is_main] or pictures
    if not main and elsewhere:
        raise InputError(
            f"{path}: its pixels are in {', '.join(elsewhere)}; name that file, or save it as one"
        )
    if not main:
        raise InputError(f"{path}: a TIFF file without an image; copy the slide again")
    slide = max(main, key=lambda picture: picture.pixels)  # the first of equals
    page = slide.pages[0].keyframe
    if slide.stack:
        raise InputError(
            f"{path}: {slide.stack} of {page.dtype} ({page.photometric.name}), planes instead of "
            "colors; save it as one 8-bit RGB picture"
        )
    if slide.series.kind == "svs" and page.samplesperpixel == 1 and _DYE in page.description:
        raise InputError(f"{path}: fluorescence of one dye, not a stain; give a slide in color")
    if not any(slide.pages[0].databytecounts):
        raise InputError(f"{path}: an image without any data; copy the slide again")
    notes = _note_others(slide, pictures, file.is_ome)
    if elsewhere:
        notes.append(f"its metadata names images of other files, too: {', '.join(elsewhere)}")
    return slide, tuple(notes)


def _note_others(slide: Picture, pictures: list[Picture], is_ome: bool) -> list[str]:
    large = [picture for picture in pictures if _SMALL * picture.pixels > slide.pixels]
    sections = [
        picture
        for picture in large
        if picture.is_main and (is_ome or not _is_reduced(slide, picture))
    ]
    notes = [
        describe_other_image(slide.size, picture.size)
        for picture in large
        if not picture.is_main and not is_level(slide.size, picture.size)
    ]
    if len(sections) > 1:
        which = "largest" if any(p.pixels < slide.pixels for p in sections) else "first"
        notes.insert(0, f"it holds {len(sections)} large images; only the {which} is used")
    small = sum(
        _may_be_section(slide, picture)
        for picture in pictures
        if picture.is_main and _SMALL * picture.pixels <= slide.pixels
    )
    if small:
        notes.append(f"it holds {small} smaller image{'s' * (small > 1)}, left out")
    return notes


def _may_be_section(slide: Picture, picture: Picture) -> bool:
    """Whether a small picture may be a section, not a label, a photo or a thumbnail of the slide.

    Labels, photos and thumbnails are in strips or a single tile, have the slide's shape, or are
    named so.
    """
    page, name = picture.pages[0].keyframe, picture.series.name.lower()
    return (
        page.is_tiled
        and (page.imagewidth > page.tilewidth or page.imagelength > page.tilelength)
        and not is_level(slide.size, picture.size)
        and not any(word in name for word in _NO_SECTIONS)
    )


def _is_reduced(slide: Picture, picture: Picture) -> bool:
    """Whether a picture looks like an unmarked level: smaller by a whole number."""
    factor = round(slide.size[0] / picture.size[0])
    rest = [side - factor * own for side, own in zip(slide.size, picture.size, strict=True)]
    return factor > 1 and max(map(abs, rest)) < 2 * factor


def _list_pictures(path: Path, series: tifffile.TiffPageSeries) -> list[Picture]:
    """Lists the pictures of a series: one, or one per page in a sequence of pages in color."""
    levels = [list(level.pages) for level in series.levels]
    if any(page is None for pages in levels for page in pages):
        raise InputError(f"{path}: its metadata names pages that it does not have; save it again")
    count = len(levels[0])
    if series.kind == "svs" and levels[0][0].keyframe.samplesperpixel > 1:
        count, levels = 1, [pages[:1] for pages in levels]  # the others are focal planes
    levels = [pages for pages in levels if len(pages) == count]
    if count == 1:
        return [Picture([page for (page,) in levels], "", series)]
    # "I" and "Q": pages of unknown meaning. Pages of one gray sample are more often planes of a
    # stack than sections.
    if series.axes[0] in "IQ" and len(series.axes) == 4 and series.axes.endswith("S"):
        return [Picture(list(pages), "", series) for pages in zip(*levels, strict=True)]
    return [Picture([pages[0] for pages in levels], f"{series.axes} {series.shape}", series)]


def open_tiff(path: Path) -> RawSlide:
    """Opens the largest picture of a TIFF file.

    Raises:
      InputError: it is not 8-bit gray, RGB or RGBA, or of an unknown compression; it is a stack of
        planes; its tiles or strips are too large, or some lie beyond the end of the file or in
        other files.
      OtherColors: colors that OpenSlide may read.
    """
    file = tifffile.TiffFile(path)
    try:
        slide, notes = find_slide(path, file)
        pages = [page.keyframe for page in slide.pages]
        sizes = tuple((page.imagewidth, page.imagelength) for page in pages)
        check_size(path, sizes, file.filehandle.size)
        cache, lock = Cache(SEGMENT_BYTES), threading.Lock()
        readers = [LevelReader(path, file, lock, page, cache) for page in slide.pages]
        more = [note_dropped_samples(pages[0]), *note_orientation(pages[0])]
        if not file.is_ome:
            mpp = _read_tag_mpp(pages[0])
        else:
            pixels = ome.find_pixels(path, file.ome_metadata, slide.size, slide.pages[0].index)
            mpp = None if pixels is None else ome.read_mpp(pixels)
            if pixels is None:
                more += ["its OME metadata describes no image of its size, so its mpp is unknown"]
        return RawSlide(
            sizes=sizes,
            read=lambda level, *region: readers[level].read(level, *region),
            close=file.close,
            vendor="ome-tiff" if file.is_ome else "tiff",
            mpp=mpp,
            complete=all(all(page.databytecounts) for page in slide.pages),
            notes=(*notes, *filter(None, more)),
        )
    except BaseException:
        file.close()
        raise


def is_plain(picture: Picture) -> bool:
    """Whether the pixels of all levels are 8-bit colors, without further samples."""
    pages = [page.keyframe for page in picture.pages]
    extra = any(p.samplesperpixel != COLORS.get(p.photometric, p.samplesperpixel) for p in pages)
    return not extra and all(page.dtype == np.uint8 for page in pages)


def _read_tag_mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    unit = {2: 25400.0, 3: 1e4}.get(page.tags.valueof("ResolutionUnit", 1))
    rates = [page.tags.valueof(tag) for tag in ("XResolution", "YResolution")]
    if unit is None or not all(rate and rate[0] and rate[1] for rate in rates):
        return None
    across, down = (unit * below / above for above, below in rates)
    return across, down
