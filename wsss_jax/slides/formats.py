"""The formats of slides: any file behind one interface.

OpenSlide opens what it knows, tifffile the TIFF files that OpenSlide misses or sees one level of,
wsidicom (optional) the DICOM that OpenSlide does not take, Pillow plain pictures.
"""

import dataclasses
import functools
import math
import struct
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image

from wsss_jax.errors import InputError
from wsss_jax.slides.blocks import Cache, paste, white

_SEGMENT_BYTES = 128 << 20
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG = (6, 7, 33007, 34892)  # compressions of TIFF that share tables
_PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_CONVERT = "convert it, e.g. with vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg"
_MICROMETERS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
# What the libraries raise on damaged files; wsidicom's own errors join where it is imported.
UNREADABLE = (
    openslide.OpenSlideError,
    ElementTree.ParseError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    SyntaxError,
    struct.error,
)

_Read = Callable[[int, int, int, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a library makes of a file.

    `sizes` are (width, height) of each level, the largest first. `read(level, x, y, width, height)`
    is only called for regions inside the level, by several threads. `mpp` is what the file says,
    plausible or not. A pyramid is not `complete` if tiles were left out of it, which OpenSlide
    fills from other levels. `notes` are sentences on what is odd, for the slide's warnings.
    """

    sizes: tuple[tuple[int, int], ...]
    read: _Read
    close: Callable[[], None]
    vendor: str
    mpp: tuple[float, float] | None = None
    objective_power: float | None = None
    bounds: tuple[int, int, int, int] | None = None
    errors: tuple[type[Exception], ...] = UNREADABLE
    complete: bool = True
    notes: tuple[str, ...] = ()


def open_file(path: Path) -> Opened:
    """Opens a slide of any format that the libraries know.

    Args:
      path: a file, or a folder with the .dcm files of one slide.

    Raises:
      InputError: no such file, one that cannot be read, is empty, damaged, no image, too large to
        be read without tiles, or needs a package that is not installed.
    """
    try:
        folder = path.is_dir()
        if not folder:
            with path.open("rb") as file:
                head = file.read(132)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make the file readable") from error
    if folder:
        return _open_dicom(path)
    if not head:
        raise InputError(f"{path}: an empty file; copy the slide again")
    dicom = head[128:] == b"DICM"
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor == "generic-tiff":
            return _open_generic_tiff(path)
        if vendor == "aperio":
            return _by_tifffile(path, _open_openslide(path, vendor))
        if vendor is not None:
            return _open_openslide(path, vendor)
        if head[:4] in _TIFF_MAGIC:
            return _open_tiff(path)
        if head.startswith(_PICTURE_MAGIC):
            return _open_picture(path)
    except InputError:
        raise
    except UNREADABLE as error:
        if not dicom:
            raise InputError(
                f"{path}: damaged or cut short ({one_line(error)}); copy the slide again"
            ) from error
    if dicom:
        return _open_wsidicom(path)
    raise InputError(
        f"{path}: not a slide, whatever its name says; give a slide that OpenSlide or tifffile "
        "reads, DICOM, PNG or JPEG"
    )


def _open_generic_tiff(path: Path) -> Opened:
    """By OpenSlide if it can; but it reads neither the levels in SubIFDs nor OME's metadata."""
    with tifffile.TiffFile(path) as file:
        ome, levels = file.is_ome, len(file.series[0].levels)
    if not ome:
        try:
            opened = _open_openslide(path, "generic-tiff")
        except openslide.OpenSlideError:
            return _open_tiff(path)  # which knows more compressions
        if len(opened.sizes) >= levels:
            return _by_tifffile(path, opened)
        opened.close()
    return _open_tiff(path)


def _by_tifffile(path: Path, opened: Opened) -> Opened:
    """The slide as OpenSlide opened it, its pixels read by tifffile if that sees the same levels.

    OpenSlide takes regions at whole level-0 pixels. Where a level's factor is no whole number (odd
    sizes halved: 2.0005), they lie up to a quarter of a pixel off, each by another part, and
    borders of blocks would show. tifffile is exact, and decodes JPEG two to three times as fast.
    """
    try:
        exact = _open_tiff(path)
    except UNREADABLE:
        return opened  # a kind that only OpenSlide knows
    if exact.sizes != opened.sizes or not exact.complete:
        exact.close()
        return opened
    opened.close()
    return dataclasses.replace(opened, read=exact.read, close=exact.close)


def _open_openslide(path: Path, vendor: str) -> Opened:
    handle = openslide.OpenSlide(str(path))
    properties = handle.properties
    downsamples = handle.level_downsamples

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        # Beside whole pixels (see `_by_tifffile`) it interpolates, with what is transparent, too,
        # where the level ends; but there the color itself is right.
        location = (round(x * downsamples[level]), round(y * downsamples[level]))
        region = handle.read_region(location, level, (width, height))
        image = np.array(region.convert("RGB"))
        image[np.asarray(region.getchannel("A")) < 128] = 255
        return image

    mpp = [number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    if None in mpp:
        unit = {"inch": 25400.0, "centimeter": 1e4}.get(properties.get("tiff.ResolutionUnit", ""))
        mpp = [
            unit / per_unit if unit and (per_unit := number(properties.get(tag))) else None
            for tag in ("tiff.XResolution", "tiff.YResolution")
        ]
    bounds = [
        number(properties.get(f"openslide.bounds-{field}"))
        for field in ("x", "y", "width", "height")
    ]
    return Opened(
        sizes=handle.level_dimensions,
        read=read,
        close=handle.close,
        vendor=vendor,
        mpp=None if None in mpp else tuple(mpp),
        objective_power=number(properties.get("openslide.objective-power")),
        bounds=None if None in bounds else tuple(map(int, bounds)),
    )


def _open_tiff(path: Path) -> Opened:
    file = tifffile.TiffFile(path)
    try:
        # OME-TIFF may hold a label or a macro image before the slide.
        series = max(file.series, key=_pixels) if file.is_ome else file.series[0]
        # A macro image is far smaller than a section.
        sections = sum(16 * _pixels(other) > _pixels(series) for other in file.series)
        note = f"it holds {sections} large images; only the largest is used"
        cache, lock = Cache(_SEGMENT_BYTES), threading.Lock()
        readers = [_tiff_level(path, file, lock, level, cache) for level in series.levels]
        pages = [level.keyframe for level in series.levels]
        return Opened(
            sizes=tuple((page.imagewidth, page.imagelength) for page in pages),
            read=lambda level, *region: readers[level](level, *region),
            close=file.close,
            vendor="ome-tiff" if file.is_ome else "tiff",
            mpp=_ome_mpp(file.ome_metadata, series) if file.is_ome else _tag_mpp(series.keyframe),
            complete=all(
                all(page.databytecounts) for level in series.levels for page in level.pages
            ),
            notes=(note,) if file.is_ome and sections > 1 else (),
        )
    except BaseException:
        file.close()
        raise


def _tiff_level(
    path: Path,
    file: tifffile.TiffFile,
    lock: threading.Lock,
    level: tifffile.TiffPageSeries,
    cache: Cache,
) -> _Read:
    """Reads a level by its tiles or strips; channels are interleaved, in planes or in pages.

    Raises:
      InputError: it is not 8-bit gray, RGB or RGBA, its tiles or strips are too large, or some
        lie beyond the end of the file.
    """
    page = level.keyframe
    width, height = page.imagewidth, page.imagelength
    plain = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK)
    # The decoder of JPEG turns it into RGB; that of JPEG 2000 does not, and Aperio's (33003) is
    # YCbCr whatever it says.
    plain = plain and page.compression != tifffile.COMPRESSION.APERIO_JP2000_YCBC
    encoded = page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in _JPEG
    channels = page.samplesperpixel * len(level.pages)
    if (
        page.dtype != np.uint8
        or channels not in (1, 3, 4)
        or math.prod(level.shape) != width * height * channels
        or not (plain or encoded)
    ):
        raise InputError(
            f"{path}: {level.axes} {level.shape} of {page.dtype} ({page.photometric.name}); "
            "save it as one 8-bit RGB picture"
        )
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    tall = min(tall, height)
    if tall * wide * page.samplesperpixel > _SEGMENT_BYTES:
        raise InputError(
            f"{path}: {width} x {height} pixels in pieces of {wide} x {tall}, which need too much "
            f"memory; {_CONVERT}"
        )
    across = -(-width // wide)
    planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    step = across * -(-height // tall)
    # Looked up here: these properties read the file when they are first used.
    sources = [
        (member.dataoffsets, member.databytecounts, plane * step, _decoder(member))
        for member in level.pages
        for plane in range(planes)
    ]
    ends = (max(map(sum, zip(offsets, counts, strict=True))) for offsets, counts, _, _ in sources)
    if max(ends) > file.filehandle.size:
        raise InputError(f"{path}: cut short; copy the slide again")

    def segment(row: int, column: int) -> np.ndarray:
        parts = []
        for offsets, counts, first, decode in sources:
            index = first + row * across + column
            if not counts[index]:
                return white(tall, wide)
            with lock:
                file.filehandle.seek(offsets[index])
                data = file.filehandle.read(counts[index])
            parts.append(decode(data, index)[0][0])
        pixels = np.concatenate(parts, axis=-1)
        if channels == 4:
            return _on_white(Image.fromarray(pixels))
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


def _decoder(page: tifffile.TiffPage | tifffile.TiffFrame) -> Callable[..., tuple]:
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


def _pixels(series: tifffile.TiffPageSeries) -> int:
    return series.keyframe.imagewidth * series.keyframe.imagelength


def _ome_mpp(metadata: str, series: tifffile.TiffPageSeries) -> tuple[float, float] | None:
    root = ElementTree.fromstring(metadata)
    images = [node for node in root.iter() if node.tag.endswith("Pixels")]
    size = str(series.keyframe.imagewidth), str(series.keyframe.imagelength)
    own = (node for node in images if (node.get("SizeX"), node.get("SizeY")) == size)
    pixels = next(own, images[0])
    sizes = []
    for axis in "XY":
        unit = _MICROMETERS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = number(pixels.get(f"PhysicalSize{axis}"))
        if unit is None or size is None:
            return None
        sizes.append(unit * size)
    return sizes[0], sizes[1]


def _open_picture(path: Path) -> Opened:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(path)
        except Image.DecompressionBombError as error:
            raise InputError(f"{path}: too large to be read without tiles; {_CONVERT}") from error
    with picture:
        if picture.mode[0] in "IF":
            raise InputError(f"{path}: more than 8 bits a channel; save it as 8-bit RGB")
        if picture.has_transparency_data:
            pixels = _on_white(picture.convert("RGBA"))
        else:
            pixels = np.asarray(picture.convert("RGB"))
    return Opened(
        sizes=((pixels.shape[1], pixels.shape[0]),),
        read=lambda level, x, y, width, height: pixels[y : y + height, x : x + width],
        close=lambda: None,
        vendor="picture",
    )


def _open_dicom(folder: Path) -> Opened:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".dcm")
    if not files:
        raise InputError(f"{folder}: a folder without .dcm files; name a slide")
    try:
        # Any file leads OpenSlide to the others of its series.
        vendor = openslide.OpenSlide.detect_format(str(files[0]))
        if vendor == "dicom":
            return _open_openslide(files[0], vendor)
    except openslide.OpenSlideError:
        pass  # wsidicom takes more kinds, and says what is wrong
    return _open_wsidicom(folder)


def _open_wsidicom(path: Path) -> Opened:
    try:
        import wsidicom
        import wsidicom.errors
    except ImportError as error:
        raise InputError(
            f"{path}: OpenSlide cannot read this DICOM; pip install wsidicom, or convert the slide"
        ) from error
    own = [kind for kind in vars(wsidicom.errors).values() if isinstance(kind, type)]
    errors = (*UNREADABLE, *(kind for kind in own if issubclass(kind, Exception)))
    try:
        handle = wsidicom.WsiDicom.open(path)
        levels = list(handle.pyramid)
        mpp = handle.mpp
    except errors as error:
        raise InputError(
            f"{path}: not a whole DICOM slide ({one_line(error)}); copy it again"
        ) from error

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        region = handle.read_region((x, y), levels[level].level, (width, height))
        return np.asarray(region.convert("RGB"))

    return Opened(
        sizes=tuple((level.size.width, level.size.height) for level in levels),
        read=read,
        close=handle.close,
        vendor="dicom",
        mpp=(mpp.width, mpp.height),
        errors=errors,
    )


def _on_white(rgba: Image.Image) -> np.ndarray:
    """(h, w, 3) uint8 of an RGBA image laid on white."""
    image = Image.new("RGB", rgba.size, "white")
    image.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(image)


def number(text: str | None) -> float | None:
    """What a text says as a number; None if it says none."""
    try:
        return float(text or "")
    except ValueError:
        return None


def one_line(error: BaseException) -> str:
    """The first line of an error, for messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
