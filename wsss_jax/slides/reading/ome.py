"""Metadata of OME-TIFF files: images, their planes and mpp, and other files of a set."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.slides.reading.raw_slide import parse_number

_MICROMETERS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_MAX_LISTED = 5  # files in a message


def _find(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Finds the elements of a name in any version of OME's namespace."""
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def count_planes(metadata: str) -> int:
    """Counts the planes of all images, each by the largest number that the metadata gives."""
    return sum(map(_count_planes, _find(ElementTree.fromstring(metadata), "Pixels")))


def _count_planes(pixels: ElementTree.Element) -> int:
    sizes = math.prod(int(pixels.get(f"Size{axis}", 1)) for axis in "CZT")
    given = [
        int(data.get(field, 0))
        for data in _find(pixels, "TiffData")
        for field in ("PlaneCount", "NumPlanes", "IFD")
    ]
    return max(sizes, *given, 1)


def check_set(path: Path, metadata: str) -> None:
    """Refuses a file of a set if the other files are not beside it.

    Raises:
      InputError: names the files; or its own metadata is in another file.
    """
    root = ElementTree.fromstring(metadata)
    for element in _find(root, "BinaryOnly"):
        name = element.get("MetadataFile") or "an unnamed one"
        state = "" if (path.parent / name).exists() else ", which is missing"
        raise InputError(
            f"{path}: its metadata is in another file, {name}{state}; save it as one OME-TIFF file"
        )
    names = {
        element.get("FileName"): None
        for element in _find(root, "UUID")
        if element.text != root.get("UUID")
    }
    others = [name for name in names if name and name.lower() != path.name.lower()]
    missing = [name for name in others if not (path.parent / name).exists()]
    if missing:
        more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        raise InputError(
            f"{path}: parts of it are in other files, which are missing: "
            f"{', '.join(missing[:_MAX_LISTED])}{more}; copy them beside it, or save it as one file"
        )
    for name in others:
        check_regular(path.parent / name)


def find_pixels(
    path: Path, metadata: str, size: tuple[int, int], page: int
) -> ElementTree.Element | None:
    """Finds the description of a picture, the element Pixels; None if no image has its size.

    Args:
      path, metadata: the file, and its OME metadata.
      size: (width, height) of the picture.
      page: number of its page; decides between descriptions of the same size.
    """
    root = ElementTree.fromstring(metadata)

    def is_here(pixels: ElementTree.Element) -> bool:
        files = _find(pixels, "UUID")
        return not files or any(
            file.text == root.get("UUID") or file.get("FileName", "").lower() == path.name.lower()
            for file in files
        )

    def has_page(pixels: ElementTree.Element) -> bool:
        return any(int(data.get("IFD", 0)) == page for data in _find(pixels, "TiffData"))

    own = [
        pixels
        for pixels in _find(root, "Pixels")
        if (pixels.get("SizeX"), pixels.get("SizeY")) == tuple(map(str, size)) and is_here(pixels)
    ]
    return next(filter(has_page, own), next(iter(own), None))


def read_mpp(pixels: ElementTree.Element) -> tuple[float, float] | None:
    """Reads micrometers per pixel, across and down; None if unknown or in an unknown unit."""
    sizes = []
    for axis in "XY":
        unit = _MICROMETERS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        length = parse_number(pixels.get(f"PhysicalSize{axis}"))
        if unit is None or length is None:
            return None
        sizes.append(unit * length)
    return sizes[0], sizes[1]
