"""The tissue of a slide as the configuration says: looked for, taken from a mask, or everywhere."""

import math
import re
import unicodedata
from pathlib import Path

import cv2
import ml_collections
import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.tissue import Tissue, detect, from_file
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.reading import Slide, View

_DETECTED_AT = 4.0  # micrometers per pixel; finer, noise and nuclei are seen instead of tissue
_STRAY = 0.01  # share of a mask's tissue that may lie where nothing was scanned


def find_tissue(
    config: ml_collections.ConfigDict,
    view: View,
    overview: np.ndarray,
    factor: float,
    mask_file: Path | None,
) -> tuple[Tissue, str]:
    """Where the slide has tissue, as `config.tissue` says.

    Args:
      config: the fields `tissue`.
      view: the slide.
      overview, factor: as `View.overview` returns.
      mask_file: the tissue mask, if `config.tissue.source` is a folder.

    Returns:
      the tissue, and a sentence on what is odd about it or on what the mask is taken to cover, or
      "".

    Raises:
      InputError: nowhere; or the mask cannot be read, or has another shape than the slide.
    """
    options = config.tissue
    area, note = None, ""
    if (overview == 255).all():
        note = "it is white all over, as what is transparent or was not scanned is"
    if options.source == "off":
        return Tissue.everything(view.width, view.height), note
    if mask_file is not None:
        mask = from_file(mask_file)
        area, note = _covered(mask, view, mask_file, options.mask_area)
        remedy = f"correct {mask_file}"
    else:
        coarse, mpp = _coarser(overview, view.mpp * factor)
        mask = detect(
            coarse,
            mpp,
            threshold=options.threshold if options.threshold == "otsu" else int(options.threshold),
            closing=options.closing,
            min_tissue=options.min_tissue,
            min_hole=options.min_hole,
        )
        remedy = (
            "lower --config.tissue.threshold or --config.tissue.min_tissue, or set "
            "--config.tissue.source=off"
        )
        remedy = note or remedy
    if not mask.any():
        raise InputError(f"{view.slide.path}: no tissue found; look at the slide, {remedy}")
    return Tissue(mask, view.width, view.height, area), note


def is_scanned_in_part(slide: Slide) -> bool:
    """Whether the slide's bounds are less than the slide, so that a mask could be of either."""
    return slide.bounds != (0, 0, slide.width, slide.height)


def _covered(
    mask: np.ndarray, view: View, mask_file: Path, wanted: str
) -> tuple[tuple[float, float, float, float] | None, str]:
    """What a mask covers, in working pixels, None for the whole slide; and the note on it.

    Viewers show the scanned area of a slide only, and so their masks are of it, in the coordinates
    of `tissue.geojson`; other programs make masks of the whole slide. The shape tells which, and
    where it fits both, the tissue: nothing outside of the scanned area can be any.
    """
    slide = view.slide
    x, y, width, height = slide.bounds
    scanned = x / view.scale[0], y / view.scale[1], width / view.scale[0], height / view.scale[1]
    sizes = {"slide": (view.width, view.height)}
    if is_scanned_in_part(slide):
        sizes["scanned"] = scanned[2:]
        if wanted != "auto":
            sizes = {wanted: sizes[wanted]}
    fitting = [what for what, size in sizes.items() if _has_shape(mask, *size)]
    texts = {"slide": "whole slide", "scanned": "scanned area"}
    if not fitting:
        shapes = " and the ".join(
            f"{texts[what]}'s {wide:.0f} x {tall:.0f}" for what, (wide, tall) in sizes.items()
        )
        raise InputError(
            f"{mask_file}: {mask.shape[1]} x {mask.shape[0]} pixels, another shape than the "
            f"{shapes}; save a mask of the {' or the '.join(texts[what] for what in sizes)}"
        )
    if not is_scanned_in_part(slide):
        return None, ""
    chosen = fitting[0] if len(fitting) == 1 else _by_tissue(mask, slide)
    note = f"the tissue mask is taken to cover the {texts[chosen]}"
    if len(fitting) > 1:
        other = "slide" if chosen == "scanned" else "scanned"
        note += f"; set --config.tissue.mask_area={other} if it is of the {texts[other]}"
    return (scanned if chosen == "scanned" else None), note


def _has_shape(mask: np.ndarray, wide: float, tall: float) -> bool:
    """Whether the mask has a shape; rounding to its pixels is no matter."""
    height, width = mask.shape
    stretched = abs(math.log(width / height * tall / wide))
    return stretched <= 0.02 + 1 / width + 1 / height


def _by_tissue(mask: np.ndarray, slide: Slide) -> str:
    """What a mask covers whose shape fits both, by where its tissue would lie.

    Seen as the whole slide, one of the scanned area has tissue where nothing was scanned. If the
    scanned area is most of the slide that says little; then it is as in the viewer.
    """
    height, width = mask.shape
    x, y, wide, tall = slide.bounds
    left, top = math.floor(x / slide.width * width) - 1, math.floor(y / slide.height * height) - 1
    right = math.ceil((x + wide) / slide.width * width) + 1
    bottom = math.ceil((y + tall) / slide.height * height) + 1
    inside = np.count_nonzero(mask[max(top, 0) : bottom, max(left, 0) : right])
    stray = np.count_nonzero(mask) - inside
    most = 2 * wide * tall > slide.width * slide.height
    return "scanned" if most or stray > _STRAY * np.count_nonzero(mask) else "slide"


def _coarser(overview: np.ndarray, mpp: float) -> tuple[np.ndarray, float]:
    """The overview at no less than `_DETECTED_AT` micrometers per pixel, and at how many."""
    ratio = max(1.0, _DETECTED_AT / mpp)
    height, width = overview.shape[:2]
    size = max(1, round(width / ratio)), max(1, round(height / ratio))
    return cv2.resize(overview, size, interpolation=cv2.INTER_AREA), mpp * width / size[0]


def mask_file_of(source: str, file: SlideFile) -> Path | None:
    """The tissue mask of a slide if `source` (config.tissue) is a folder; it may be missing.

    It is called as the slide but for the ending, `.png` in any case. Where several slides have that
    name, it is called as the slide's folder of results.

    Raises:
      InputError: it could be another slide's, or there are several.
    """
    if source in ("detect", "off"):
        return None
    stem = file.path.name if file.path.is_dir() else file.path.stem
    is_unique = file.name == re.sub("[\ud800-\udfff]", "_", stem)
    name = stem if is_unique else file.name
    masks = [path for path in Path(source).glob("*") if path.suffix.lower() == ".png"]
    own = sorted(path for path in masks if _normalized(path.stem) == _normalized(name))
    if len(own) > 1:
        names = ", ".join(path.name for path in own)
        raise InputError(f"{source}: several masks of {file.path.name} ({names}); keep one")
    if not own and not is_unique and any(_normalized(p.stem) == _normalized(stem) for p in masks):
        raise InputError(
            f"{file.path}: {Path(source) / stem}.png could be the mask of several slides; call "
            f"its own {name}.png"
        )
    return own[0] if own else Path(source) / f"{name}.png"


def _normalized(name: str) -> str:
    """The same for both ways of writing "ä" in Unicode: files from a Mac have the other one."""
    return unicodedata.normalize("NFC", name)
