"""TIFF files by tifffile: which of their pages are the slide, and reading those."""

import functools
import logging
import math
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from data.pictures import lay_on_white
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.blocks import Cache, paste, white
from wsss_jax.slides.opened import CONVERT, Opened, check_size, is_level, number, strange_level

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SEGMENT_BYTES = 128 << 20  # of a decoded tile or strip, and of those that are kept
_JPEG = (6, 7, 33007, 34892)  # compressions of TIFF that share tables
_MICROMETERS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_COLORS = {  # samples of a pixel that make its color
    tifffile.PHOTOMETRIC.RGB: 3,
    tifffile.PHOTOMETRIC.YCBCR: 3,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
}
_SEPARATE = tifffile.PLANARCONFIG.SEPARATE
_REDUCED, _MASK = 1, 4  # flags of NewSubfileType
_SMALL = 16  # times fewer pixels than the slide: a macro image or a label, no section
_NAMED = 5  # files that a message lists
_MOST_PLANES = 2**20  # that metadata may name; tifffile makes a list of all

# What it logs of damaged files, in several lines, is said in one where it matters.
tifffile.logger().setLevel(logging.CRITICAL)

_Page = tifffile.TiffPage | tifffile.TiffFrame


class Picture(NamedTuple):
    """A picture of a TIFF file.

    Attributes:
      pages: of each level, the largest first.
      stack: what it is a stack of planes of ("ZYX (3, 768, 1024)"), else "".
      series: that it is in.
    """

    pages: list[_Page]
    stack: str
    series: tifffile.TiffPageSeries

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its largest level."""
        page = self.pages[0].keyframe
        return page.imagewidth, page.imagelength

    @property
    def pixels(self) -> int:
        """Of its largest level."""
        width, height = self.size
        return width * height

    @property
    def is_main(self) -> bool:
        """Whether its file calls it neither a smaller version of something nor a mask."""
        return not self.pages[0].keyframe.subfiletype & (_REDUCED | _MASK)


def check_header(path: Path) -> None:
    """Refuses a file that claims more than it can hold, before anything is allocated for it.

    OpenSlide would end the process where it cannot allocate a tile.

    Raises:
      InputError: a page longer than any slide, of tiles that are too large, or of more tiles than
        its table has; pages that lead in a circle; or more planes than any slide has.
    """
    file_bytes = path.stat().st_size
    with tifffile.TiffFile(path) as file:
        seen = set()
        for page in file.pages:
            if page.offset in seen:  # tifffile would go on for ever
                raise InputError(f"{path}: its pages lead in a circle; copy the slide again")
            seen.add(page.offset)
            check_size(path, ((page.imagewidth, page.imagelength),), file_bytes)
            if page.is_tiled:
                _check_segment(path, page, page.tilewidth, page.tilelength)
                _check_table(path, page)
        planes = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
        if file.is_ome:
            pixels = _elements(ElementTree.fromstring(file.ome_metadata), "Pixels")
            planes = max(map(_planes, pixels), default=1)
        if planes > _MOST_PLANES:
            raise InputError(f"{path}: {planes:,} planes; save it as one 8-bit RGB picture")


def _planes(pixels: ElementTree.Element) -> int:
    """The most that an image of OME's metadata has, by any of the numbers that say so."""
    sizes = math.prod(int(pixels.get(f"Size{axis}", 1)) for axis in "CZT")
    given = [
        int(data.get(field, 0))
        for data in _elements(pixels, "TiffData")
        for field in ("PlaneCount", "NumPlanes", "IFD")
    ]
    return max(sizes, *given, 1)


def _elements(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Those of a name in any version of OME's namespace."""
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def find_slide(path: Path, file: tifffile.TiffFile) -> tuple[Picture, tuple[str, ...]]:
    """The largest picture of a file, and notes on others that are left out.

    Raises:
      InputError: its pixels are in other files that are missing, or it is a stack of planes.
    """
    if file.is_ome:
        _check_parts(path, ElementTree.fromstring(file.ome_metadata))
    pictures = [picture for series in file.series for picture in _pictures(path, series)]
    main = [picture for picture in pictures if picture.is_main] or pictures
    if not main:
        raise InputError(f"{path}: a TIFF file without an image; copy the slide again")
    slide = max(main, key=lambda picture: picture.pixels)  # the first of equals
    if slide.stack:
        page = slide.pages[0].keyframe
        raise InputError(
            f"{path}: {slide.stack} of {page.dtype} ({page.photometric.name}), planes that are no "
            "colors; save it as one 8-bit RGB picture"
        )
    if not any(slide.pages[0].databytecounts):
        raise InputError(f"{path}: an image without any data; copy the slide again")
    large = [picture for picture in pictures if _SMALL * picture.pixels > slide.pixels]
    sections = [
        picture
        for picture in large
        if picture.is_main and (file.is_ome or not _is_reduced(slide, picture))
    ]
    notes = [
        strange_level(slide.size, picture.size)
        for picture in large
        if not picture.is_main and not is_level(slide.size, picture.size)
    ]
    if len(sections) > 1:
        which = "largest" if any(p.pixels < slide.pixels for p in sections) else "first"
        notes.insert(0, f"it holds {len(sections)} large images; only the {which} is used")
    return slide, tuple(notes)


def _is_reduced(slide: Picture, picture: Picture) -> bool:
    """Whether a picture looks like a level that nothing calls one: smaller by a whole number."""
    factor = round(slide.size[0] / picture.size[0])
    rest = [side - factor * own for side, own in zip(slide.size, picture.size, strict=True)]
    return factor > 1 and max(map(abs, rest)) < 2 * factor


def _pictures(path: Path, series: tifffile.TiffPageSeries) -> list[Picture]:
    """The pictures of a series: one, or one a page where pages in color follow each other."""
    levels = [list(level.pages) for level in series.levels]
    if any(page is None for pages in levels for page in pages):
        raise InputError(f"{path}: its metadata names pages that it has not; save it again")
    count = len(levels[0])
    levels = [pages for pages in levels if len(pages) == count]
    if count == 1:
        return [Picture([page for (page,) in levels], "", series)]
    # "I" and "Q": pages of which nothing is known. Those of one gray sample are more often planes
    # of a stack than sections.
    if series.axes[0] in "IQ" and len(series.axes) == 4 and series.axes.endswith("S"):
        return [Picture(list(pages), "", series) for pages in zip(*levels, strict=True)]
    return [Picture([pages[0] for pages in levels], f"{series.axes} {series.shape}", series)]


def _check_parts(path: Path, root: ElementTree.Element) -> None:
    """Refuses an OME-TIFF file that is a part of several and does not have the others beside it."""
    for element in _elements(root, "BinaryOnly"):
        name = element.get("MetadataFile") or "an unnamed one"
        state = "" if (path.parent / name).exists() else ", which is missing"
        raise InputError(
            f"{path}: its metadata is in another file, {name}{state}; save it as one OME-TIFF file"
        )
    names = {
        element.get("FileName"): None
        for element in _elements(root, "UUID")
        if element.text != root.get("UUID")
    }
    others = [name for name in names if name and name.lower() != path.name.lower()]
    missing = [name for name in others if not (path.parent / name).exists()]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InputError(
            f"{path}: parts of it are in other files, which are missing: "
            f"{', '.join(missing[:_NAMED])}{more}; copy them beside it, or save it as one file"
        )
    for name in others:
        check_regular(path.parent / name)


def open_tiff(path: Path) -> Opened:
    """Opens the largest picture of a TIFF file.

    Raises:
      InputError: it is not 8-bit gray, RGB or RGBA, is a stack of planes, its tiles or strips are
        too large, or some lie beyond the end of the file or in others that are missing.
    """
    file = tifffile.TiffFile(path)
    try:
        slide, notes = find_slide(path, file)
        pages = [page.keyframe for page in slide.pages]
        sizes = tuple((page.imagewidth, page.imagelength) for page in pages)
        check_size(path, sizes, file.filehandle.size)
        cache, lock = Cache(SEGMENT_BYTES), threading.Lock()
        readers = [_level_reader(path, file, lock, page, cache) for page in slide.pages]
        if dropped := _dropped(pages[0]):
            notes = (*notes, dropped)
        return Opened(
            sizes=sizes,
            read=lambda level, *region: readers[level](level, *region),
            close=file.close,
            vendor="ome-tiff" if file.is_ome else "tiff",
            mpp=_ome_mpp(file.ome_metadata, slide.size) if file.is_ome else _tag_mpp(pages[0]),
            complete=all(all(page.databytecounts) for page in slide.pages),
            notes=notes,
        )
    except BaseException:
        file.close()
        raise


def is_plain(picture: Picture) -> bool:
    """Whether its pixels are 8-bit samples, none but those of the color."""
    page = picture.pages[0].keyframe
    extra = page.samplesperpixel - _COLORS.get(page.photometric, page.samplesperpixel)
    return page.dtype == np.uint8 and not extra


def _dropped(page: tifffile.TiffPage) -> str:
    """The note on samples that are neither color nor transparency."""
    extra = page.samplesperpixel - _COLORS[page.photometric]
    unknown = extra - (_alpha(page) is not None)
    if not unknown:
        return ""
    what = "a further sample" if unknown == 1 else f"{unknown} further samples"
    return f"its pixels have {what} besides color, no transparency by its ExtraSamples: left out"


def _alpha(page: tifffile.TiffPage) -> tuple[int, bool] | None:
    """Which sample is the transparency, and whether colors are multiplied with it already."""
    for index, kind in enumerate(page.extrasamples):
        if kind in (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA):
            position = _COLORS[page.photometric] + index
            return position, kind == tifffile.EXTRASAMPLE.ASSOCALPHA
    return None


def _check_segment(path: Path, page: tifffile.TiffPage, wide: int, tall: int) -> None:
    if min(wide, tall) < 1:
        raise InputError(f"{path}: tiles of {wide} x {tall} pixels; copy the slide again")
    if tall * wide * page.samplesperpixel > SEGMENT_BYTES:
        raise InputError(
            f"{path}: {page.imagewidth} x {page.imagelength} pixels in pieces of {wide} x {tall}, "
            f"which need too much memory; {CONVERT}"
        )


def _check_table(path: Path, member: _Page) -> None:
    page = member.keyframe
    wide, tall = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, None)
    tall = tall or min(page.rowsperstrip, page.imagelength)
    planes = page.samplesperpixel if page.planarconfig == _SEPARATE else 1
    needed = -(-page.imagewidth // wide) * -(-page.imagelength // tall) * planes
    if min(len(member.dataoffsets), len(member.databytecounts)) < needed:
        raise InputError(f"{path}: its table of tiles is cut short; copy the slide again")


def _level_reader(
    path: Path, file: tifffile.TiffFile, lock: threading.Lock, member: _Page, cache: Cache
) -> Callable[..., np.ndarray]:
    """Reads a level by its tiles or strips, samples interleaved or in planes; errors as above."""
    page = member.keyframe
    width, height = page.imagewidth, page.imagelength
    colors = _COLORS.get(page.photometric, 0)
    # The decoder of JPEG turns YCbCr into RGB; that of JPEG 2000 does not, and Aperio's (33003) is
    # YCbCr whatever it says.
    plain = page.photometric != tifffile.PHOTOMETRIC.YCBCR or page.compression in _JPEG
    if (
        page.dtype != np.uint8
        or page.imagedepth != 1
        or not colors
        or page.samplesperpixel < colors
        or (colors == 1 and page.samplesperpixel > 1)
        or not plain
        or page.compression == tifffile.COMPRESSION.APERIO_JP2000_YCBC
    ):
        raise InputError(
            f"{path}: {page.axes} {page.shape} of {page.dtype} ({page.photometric.name}); "
            "save it as one 8-bit RGB picture"
        )
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    tall = min(tall, height)
    _check_segment(path, page, wide, tall)
    across = -(-width // wide)
    step = across * -(-height // tall)
    separate = page.planarconfig == _SEPARATE
    alpha = _alpha(page)
    samples = [*range(colors), *([alpha[0]] if alpha else [])]
    # Looked up here: these properties read the file when they are first used.
    offsets, counts, decode = member.dataoffsets, member.databytecounts, _decoder(member)
    _check_table(path, member)
    if max(map(sum, zip(offsets, counts))) > file.filehandle.size:
        raise InputError(f"{path}: cut short; copy the slide again")

    def decoded(index: int) -> np.ndarray | None:
        if not counts[index]:
            return None
        with lock:
            file.filehandle.seek(offsets[index])
            data = file.filehandle.read(counts[index])
        return decode(data, index)[0][0]

    def segment(row: int, column: int) -> np.ndarray:
        index = row * across + column
        if separate:
            planes = [decoded(sample * step + index) for sample in samples]
            if any(plane is None for plane in planes):
                return white(tall, wide)
            pixels = np.concatenate(planes, axis=-1)
        else:
            pixels = decoded(index)
            if pixels is None:
                return white(tall, wide)
            pixels = pixels[..., samples] if len(samples) < pixels.shape[-1] else pixels
        if alpha:
            return _on_white(pixels, multiplied=alpha[1])
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        image = white(height, width)
        for row in range(y // tall, -(-(y + height) // tall)):
            for column in range(x // wide, -(-(x + width) // wide)):
                make = functools.partial(segment, row, column)
                part = cache.get((level, row, column), make)
                paste(image, x, y, part, column * wide, row * tall)
        return image

    return read


def _on_white(rgba: np.ndarray, *, multiplied: bool) -> np.ndarray:
    """(h, w, 3) uint8 of (h, w, 4), laid on white."""
    if not multiplied:
        return lay_on_white(Image.fromarray(np.ascontiguousarray(rgba)))
    color = rgba[..., :3].astype(np.uint16)
    return np.minimum(color + (255 - rgba[..., 3:]), 255).astype(np.uint8)


def _decoder(page: _Page) -> Callable[..., tuple]:
    decode = page.keyframe.decode
    if page.keyframe.compression in _JPEG:
        tables, header = page.jpegtables, page.keyframe.jpegheader
        return functools.partial(decode, jpegtables=tables, jpegheader=header)
    return decode


def _tag_mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    unit = {2: 25400.0, 3: 1e4}.get(page.tags.valueof("ResolutionUnit", 1))
    rates = [page.tags.valueof(tag) for tag in ("XResolution", "YResolution")]
    if unit is None or not all(rate and rate[0] and rate[1] for rate in rates):
        return None
    horizontal, vertical = (unit * below / above for above, below in rates)
    return horizontal, vertical


def _ome_mpp(metadata: str, size: tuple[int, int]) -> tuple[float, float] | None:
    root = ElementTree.fromstring(metadata)
    images = _elements(root, "Pixels")
    texts = tuple(map(str, size))
    own = (node for node in images if (node.get("SizeX"), node.get("SizeY")) == texts)
    pixels = next(own, images[0])
    sizes = []
    for axis in "XY":
        unit = _MICROMETERS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        length = number(pixels.get(f"PhysicalSize{axis}"))
        if unit is None or length is None:
            return None
        sizes.append(unit * length)
    return sizes[0], sizes[1]
