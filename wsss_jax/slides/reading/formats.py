"""Opening a slide file of any format, by the library that reads it best.

OpenSlide opens the formats it knows, tifffile the TIFF files that OpenSlide does not open or of
which it sees one level, wsidicom (optional) other DICOM, Pillow plain pictures.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import ExifTags, Image

from data.pictures import lay_on_white, open_picture, turn_upright
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading import catalog, key_files, tiff
from wsss_jax.slides.reading.compression import check_jpeg_picture
from wsss_jax.slides.reading.dicom import open_dicom
from wsss_jax.slides.reading.levels import drop_foreign_levels
from wsss_jax.slides.reading.raw_slide import (
    CONVERT,
    RawSlide,
    check_size,
    drop_other_images,
    get_first_line,
    parse_number,
)
from wsss_jax.slides.reading.tiff_headers import check_header, check_openslide
from wsss_jax.slides.reading.tiff_pixels import OtherColors

_PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def open_file(path: Path) -> RawSlide:
    """Opens a slide of any format that the libraries know.

    Args:
      path: a file, or a folder with the .dcm files of one slide.

    Raises:
      InputError: there is no such file, or it cannot be read, is empty, damaged, not an image, too
        large to be read without tiles, or needs a package that is not installed.
    """
    head = _read_head(path)
    with contextlib.ExitStack() as stack:
        try:
            raw = _open_any(path, head)
            stack.callback(raw.close)  # on errors
            size = sum(file.stat().st_size for file in catalog.list_members(path) if file.is_file())
            check_size(path, raw.sizes, size)
            raw = drop_foreign_levels(drop_other_images(raw))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # the libraries raise every kind on damaged files
            raise InputError(
                f"{path}: damaged or cut short ({get_first_line(error)}); copy the slide again"
            ) from error
        stack.pop_all()
    return raw


def _read_head(path: Path) -> bytes | None:
    """Reads the first bytes of a file, at least one; None of a folder."""
    try:
        if path.is_dir():
            return None
        if path.exists():
            check_regular(path)
        with path.open("rb") as file:
            head = file.read(132)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make the file readable") from error
    if not head:
        raise InputError(f"{path}: an empty file; copy the slide again")
    return head


def _open_any(path: Path, head: bytes | None) -> RawSlide:
    if head is None and (others := catalog.list_non_dicom(path)):
        raise InputError(
            f"{path}: a folder with other slides than DICOM ({min(others).name}); name one slide"
        )
    if head is None or head[128:] == b"DICM":
        return open_dicom(path, _open_openslide)
    is_tiff = head[:4] in tiff.MAGIC
    if is_tiff:
        check_header(path)
    for member in catalog.list_members(path):
        check_regular(member)
    key_files.check_parts(path)
    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor == "generic-tiff":
        return _open_generic_tiff(path)
    if vendor == "aperio":
        return _open_with_tifffile(path, vendor)
    if vendor is not None:
        notes = check_openslide(path) if is_tiff else ()
        return _open_openslide(path, vendor).add_notes(notes)
    if is_tiff:
        return tiff.open_tiff(path)
    if head.startswith(_PICTURE_MAGIC):
        return _open_picture(path)
    raise InputError(
        f"{path}: not a slide of a known format; give a slide that OpenSlide or tifffile reads, "
        "DICOM, PNG or JPEG"
    )


def _open_generic_tiff(path: Path) -> RawSlide:
    """Opens a TIFF file by OpenSlide if that reads all of it, else by tifffile.

    OpenSlide reads neither levels in SubIFDs nor OME's metadata, and only the first picture. It
    takes every fourth sample for transparency, masks for levels, and of 16 bits the upper 8.
    """
    with tifffile.TiffFile(path) as file:
        slide, notes = tiff.find_slide(path, file)
        is_first = slide.pages[0].offset == file.pages[0].offset
        if file.is_ome or not is_first or not tiff.is_plain(slide):
            return tiff.open_tiff(path)
    try:
        check_openslide(path)
        raw = _open_with_tifffile(path, "generic-tiff")
    except (InputError, openslide.OpenSlideError):
        # tifffile takes no other pictures for levels, and knows more compressions.
        return tiff.open_tiff(path)
    if len(raw.sizes) >= len(slide.pages):
        return raw.add_notes(notes)
    raw.close()
    return tiff.open_tiff(path)


def _open_with_tifffile(path: Path, vendor: str) -> RawSlide:
    """Opens a slide by OpenSlide, and reads its pixels by tifffile if both see the same levels.

    OpenSlide takes regions at whole level-0 pixels. Where a level's factor is not a whole number
    (odd sizes halved: 2.0005), regions are up to a quarter of a pixel off, each by a different
    amount, and borders of blocks would show. tifffile is exact, and decodes JPEG two to three times
    as fast.

    Raises:
      InputError: see `tiff.open_tiff`, but for colors that only OpenSlide knows.
    """
    try:
        exact = tiff.open_tiff(path)
    except OtherColors:
        notes = check_openslide(path)
        return drop_other_images(_open_openslide(path, vendor)).add_notes(notes)
    with contextlib.ExitStack() as stack:
        stack.callback(exact.close)
        raw = drop_other_images(_open_openslide(path, vendor))
        stack.callback(raw.close)
        if exact.sizes == raw.sizes and exact.complete:
            unused, used = raw, exact
        else:
            check_openslide(path)
            unused, used = exact, raw
        stack.pop_all()
    unused.close()
    raw = dataclasses.replace(raw, read=used.read, close=used.close)
    return raw.add_notes(exact.notes)


def _open_openslide(path: Path, vendor: str) -> RawSlide:
    handle = openslide.OpenSlide(str(path))
    properties = handle.properties
    downsamples = handle.level_downsamples

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        # Off whole pixels (see `_open_with_tifffile`) OpenSlide interpolates; at the end of a level
        # this gives partly transparent pixels of the right color.
        location = (round(x * downsamples[level]), round(y * downsamples[level]))
        region = handle.read_region(location, level, (width, height))
        image = np.array(region.convert("RGB"))
        image[np.asarray(region.getchannel("A")) < 128] = 255
        return image

    fields = ("x", "y", "width", "height")
    bounds = tuple(map(int, _read_numbers(properties, "openslide.bounds-{}", fields)))
    return RawSlide(
        sizes=handle.level_dimensions,
        read=read,
        close=handle.close,
        vendor=vendor,
        mpp=_read_mpp(properties),
        objective_power=parse_number(properties.get("openslide.objective-power")),
        bounds=bounds if len(bounds) == 4 else None,
    )


def _read_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Reads micrometers per pixel, across and down, from OpenSlide's properties or TIFF tags."""
    mpp = _read_numbers(properties, "openslide.mpp-{}", "xy")
    unit = {"inch": 25400.0, "centimeter": 1e4}.get(properties.get("tiff.ResolutionUnit", ""))
    rates = _read_numbers(properties, "tiff.{}Resolution", "XY")
    if not mpp and unit and all(rates):
        mpp = tuple(unit / rate for rate in rates)
    return mpp if len(mpp) == 2 else None


def _read_numbers(
    properties: Mapping[str, str], name: str, fields: Sequence[str]
) -> tuple[float, ...]:
    """Reads the number of each field; none unless all are there. `name` has {} for the field."""
    numbers = [parse_number(properties.get(name.format(field))) for field in fields]
    known = tuple(number for number in numbers if number is not None)
    return known if len(known) == len(numbers) else ()


def _open_picture(path: Path) -> RawSlide:
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
            raise cause from None  # `open_file` reports the damage
        raise
    return RawSlide(
        sizes=((pixels.shape[1], pixels.shape[0]),),
        read=lambda level, x, y, width, height: pixels[y : y + height, x : x + width],
        close=lambda: None,
        vendor="picture",
        notes=("it is turned upright as its EXIF orientation says",) if turned else (),
    )
