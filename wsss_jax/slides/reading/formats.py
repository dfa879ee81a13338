"""The formats of slides: any file behind one interface.

OpenSlide opens what it knows, tifffile the TIFF files that OpenSlide misses or sees one level of,
wsidicom (optional) the DICOM that OpenSlide does not take, Pillow plain pictures.
"""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import ExifTags, Image

from data.pictures import lay_on_white, open_picture, turn_upright
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading import catalog, tiff
from wsss_jax.slides.reading.dicom import open_dicom
from wsss_jax.slides.reading.encoded import check_jpeg_picture
from wsss_jax.slides.reading.key_files import check_named
from wsss_jax.slides.reading.levels import drop_foreign_levels
from wsss_jax.slides.reading.opened import (
    CONVERT,
    Opened,
    check_size,
    keep_levels,
    number,
    one_line,
)
from wsss_jax.slides.reading.tiff_headers import check_header, check_openslide
from wsss_jax.slides.reading.tiff_pixels import OtherColors

_PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


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
            if path.exists():
                check_regular(path)
            with path.open("rb") as file:
                head = file.read(132)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make the file readable") from error
    if not folder and not head:
        raise InputError(f"{path}: an empty file; copy the slide again")
    with contextlib.ExitStack() as stack:
        try:
            if folder and (others := catalog.other_slides(path)):
                raise InputError(
                    f"{path}: a folder with other slides than DICOM ({min(others).name}); name "
                    "one slide"
                )
            if folder or head[128:] == b"DICM":
                opened = open_dicom(path, _open_openslide)
            else:
                opened = _open(path, head)
            stack.callback(opened.close)  # unless all is well
            size = sum(file.stat().st_size for file in catalog.members(path) if file.is_file())
            check_size(path, opened.sizes, size)
            opened = drop_foreign_levels(keep_levels(opened))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # the libraries raise of every kind on damaged files
            raise InputError(
                f"{path}: damaged or cut short ({one_line(error)}); copy the slide again"
            ) from error
        stack.pop_all()
    return opened


def _open(path: Path, head: bytes) -> Opened:
    is_tiff = head[:4] in tiff.MAGIC
    if is_tiff:
        check_header(path)
    for member in catalog.members(path):
        check_regular(member)
    check_named(path)
    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor == "generic-tiff":
        return _open_generic_tiff(path)
    if vendor == "aperio":
        return _by_tifffile(path, vendor)
    if vendor is not None:
        notes = check_openslide(path) if is_tiff else ()
        return _with_notes(_open_openslide(path, vendor), notes)
    if is_tiff:
        return tiff.open_tiff(path)
    if head.startswith(_PICTURE_MAGIC):
        return _open_picture(path)
    raise InputError(
        f"{path}: not a slide, whatever its name says; give a slide that OpenSlide or tifffile "
        "reads, DICOM, PNG or JPEG"
    )


def _open_generic_tiff(path: Path) -> Opened:
    """By OpenSlide if it can; it reads neither levels in SubIFDs nor OME's metadata.

    Nor does it see any picture but the first; it takes every fourth sample for transparency, masks
    for levels, and of 16 bits the upper 8.
    """
    with tifffile.TiffFile(path) as file:
        slide, notes = tiff.find_slide(path, file)
        first = slide.pages[0].offset == file.pages[0].offset
        if file.is_ome or not first or not tiff.is_plain(slide):
            return tiff.open_tiff(path)
    try:
        check_openslide(path)
        opened = _by_tifffile(path, "generic-tiff")
    except (InputError, openslide.OpenSlideError):
        return tiff.open_tiff(path)  # which takes no others for levels, and knows more compressions
    if len(opened.sizes) >= len(slide.pages):
        return _with_notes(opened, notes)
    opened.close()
    return tiff.open_tiff(path)


def _by_tifffile(path: Path, vendor: str) -> Opened:
    """The slide as OpenSlide opens it, its pixels read by tifffile if that sees the same levels.

    OpenSlide takes regions at whole level-0 pixels. Where a level's factor is no whole number (odd
    sizes halved: 2.0005), they lie up to a quarter of a pixel off, each by another part, and
    borders of blocks would show. tifffile is exact, and decodes JPEG two to three times as fast.

    Raises:
      InputError: see `tiff.open_tiff`, but for colors that only OpenSlide knows.
    """
    try:
        exact = tiff.open_tiff(path)
    except OtherColors:
        notes = check_openslide(path)
        return _with_notes(keep_levels(_open_openslide(path, vendor)), notes)
    with contextlib.ExitStack() as stack:
        stack.callback(exact.close)
        opened = keep_levels(_open_openslide(path, vendor))
        stack.callback(opened.close)
        if exact.sizes == opened.sizes and exact.complete:
            unused, read = opened, exact
        else:
            check_openslide(path)
            unused, read = exact, opened
        stack.pop_all()
    unused.close()
    opened = dataclasses.replace(opened, read=read.read, close=read.close)
    return _with_notes(opened, exact.notes)


def _with_notes(opened: Opened, notes: tuple[str, ...]) -> Opened:
    return dataclasses.replace(opened, notes=tuple(dict.fromkeys((*opened.notes, *notes))))


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


def _open_picture(path: Path) -> Opened:
    try:
        with open_picture(path, ("PNG", "JPEG")) as picture:
            if picture.info["bits"] > 8:
                raise InputError(f"{path}: more than 8 bits per channel; save it as 8-bit RGB")
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            is_jpeg = picture.format != "PNG"
            pixels = lay_on_white(turn_upright(picture))
            if is_jpeg:
                check_jpeg_picture(path, pixels)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            raise InputError(f"{path}: too large to be read without tiles; {CONVERT}") from cause
        if cause is not None:
            raise InputError(
                f"{path}: damaged or cut short ({one_line(cause)}); copy the slide again"
            ) from cause
        raise
    return Opened(
        sizes=((pixels.shape[1], pixels.shape[0]),),
        read=lambda level, x, y, width, height: pixels[y : y + height, x : x + width],
        close=lambda: None,
        vendor="picture",
        notes=("it is turned upright as its EXIF orientation says",) if turned else (),
    )
