"""The tissue of a slide as the configuration says: detected, read from a mask, or everywhere."""

import math
import re
from pathlib import Path
from typing import Any

import cv2
import ml_collections
import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.tissue import Tissue, detect_tissue, read_mask
from wsss_jax.slides.reading.catalog import SlideFile, fingerprint, normalize_name
from wsss_jax.slides.reading.slide import Slide
from wsss_jax.slides.reading.view import View

_DETECTED_AT = 4.0  # micrometers per pixel; at finer resolutions noise and nuclei show
_STRAY = 0.01  # share of a mask's tissue that may lie outside of the scanned area
_AREAS = {"slide": "whole slide", "scanned": "scanned area"}  # that a mask may cover


def find_tissue(
    config: ml_collections.ConfigDict,
    view: View,
    overview: np.ndarray,
    factor: float,
    mask_file: Path | None,
) -> tuple[Tissue, str]:
    """Finds the tissue of a slide as `config.tissue` says.

    Args:
      config: the fields `tissue`.
      view: the slide.
      overview, factor: from `View.read_overview`.
      mask_file: the tissue mask, if `config.tissue.source` is a folder.

    Returns:
      the tissue, and a sentence on a white slide or on the area that the mask covers, or "".

    Raises:
      InputError: no tissue; or the mask cannot be read, or has another shape than the slide.
    """
    options = config.tissue
    area, note = None, ""
    if (overview == 255).all():
        note = "it is white all over, as what is transparent or was not scanned is"
    if options.source == "off":
        return Tissue.everywhere(view.width, view.height), note
    if mask_file is not None:
        mask = read_mask(mask_file)
        area, note = _locate_mask(mask, view, mask_file, options.mask_area)
        remedy = f"correct {mask_file}"
    else:
        coarse, mpp = _coarsen(overview, view.mpp * factor)
        mask = detect_tissue(
            coarse,
            mpp,
            threshold=options.threshold if options.threshold == "otsu" else int(options.threshold),
            closing=options.closing,
            min_tissue=options.min_tissue,
            min_hole=options.min_hole,
        )
        remedy = note or (
            "lower --config.tissue.threshold or --config.tissue.min_tissue, or set "
            "--config.tissue.source=off"
        )
    if not mask.any():
        raise InputError(f"{view.slide.path}: no tissue found; look at the slide, {remedy}")
    return Tissue(mask, view.width, view.height, area), note


def _locate_mask(
    mask: np.ndarray, view: View, mask_file: Path, mask_area: str
) -> tuple[tuple[float, float, float, float] | None, str]:
    """Finds the area that a mask covers, in working pixels, None for the whole slide; and a note.

    Viewers show only the scanned area of a slide, and so their masks cover that, in the coordinates
    of `tissue.geojson`; other programs make masks of the whole slide. The shape tells which, and
    where it fits both, the tissue: there is none outside of the scanned area.
    """
    slide = view.slide
    x, y, width, height = slide.bounds
    scanned = x / view.scale[0], y / view.scale[1], width / view.scale[0], height / view.scale[1]
    sizes: dict[str, tuple[float, float]] = {"slide": (view.width, view.height)}
    if slide.is_scanned_in_part:
        sizes["scanned"] = scanned[2:]
        if mask_area != "auto":
            sizes = {mask_area: sizes[mask_area]}
    fitting = [area for area, size in sizes.items() if _has_shape(mask, *size)]
    if not fitting:
        shapes = " and the ".join(
            f"{_AREAS[area]}'s {wide:.0f} x {tall:.0f}" for area, (wide, tall) in sizes.items()
        )
        raise InputError(
            f"{mask_file}: {mask.shape[1]} x {mask.shape[0]} pixels, another shape than the "
            f"{shapes}; save a mask of the {' or the '.join(_AREAS[area] for area in sizes)}"
        )
    if not slide.is_scanned_in_part:
        return None, ""
    chosen = fitting[0] if len(fitting) == 1 else _choose_area(mask, slide)
    note = f"the tissue mask is taken to cover the {_AREAS[chosen]}"
    if len(fitting) > 1:
        other = "slide" if chosen == "scanned" else "scanned"
        note += f"; set --config.tissue.mask_area={other} if it is of the {_AREAS[other]}"
    return (scanned if chosen == "scanned" else None), note


def _has_shape(mask: np.ndarray, wide: float, tall: float) -> bool:
    """Whether the mask has a shape, but for rounding to its pixels."""
    height, width = mask.shape
    stretch = abs(math.log(width / height * tall / wide))
    return stretch <= 0.02 + 1 / width + 1 / height


def _choose_area(mask: np.ndarray, slide: Slide) -> str:
    """Chooses the area of a mask whose shape fits both, by where its tissue would lie.

    Stretched over the whole slide, a mask of the scanned area has tissue where nothing was scanned.
    If the scanned area is most of the slide, that says little; then it is taken for a viewer's.
    """
    height, width = mask.shape
    x, y, wide, tall = slide.bounds
    left, top = math.floor(x / slide.width * width) - 1, math.floor(y / slide.height * height) - 1
    right = math.ceil((x + wide) / slide.width * width) + 1
    bottom = math.ceil((y + tall) / slide.height * height) + 1
    inside = np.count_nonzero(mask[max(top, 0) : bottom, max(left, 0) : right])
    stray = np.count_nonzero(mask) - inside
    is_most = 2 * wide * tall > slide.width * slide.height
    return "scanned" if is_most or stray > _STRAY * np.count_nonzero(mask) else "slide"


def _coarsen(overview: np.ndarray, mpp: float) -> tuple[np.ndarray, float]:
    """Reduces the overview to at least `_DETECTED_AT` micrometers per pixel, and gives its mpp."""
    ratio = max(1.0, _DETECTED_AT / mpp)
    height, width = overview.shape[:2]
    size = max(1, round(width / ratio)), max(1, round(height / ratio))
    return cv2.resize(overview, size, interpolation=cv2.INTER_AREA), mpp * width / size[0]


def collect_tissue_settings(
    config: ml_collections.ConfigDict, slide: Slide, mask_file: Path | None
) -> dict[str, Any]:
    """Collects all that the tissue of a slide depends on, as JSON can hold it.

    Raises:
      InputError: there is no such mask.
    """
    if config.tissue.source == "off":
        return {"source": "off"}
    if mask_file is None:
        return config.tissue.to_dict()
    if not mask_file.exists():
        raise InputError(
            f"{slide.path}: there is no tissue mask {mask_file}; add it, or set "
            "--config.tissue.source=detect"
        )
    settings = {"mask": fingerprint(mask_file)}
    if slide.is_scanned_in_part:
        settings["mask_area"] = config.tissue.mask_area
    return settings


def find_mask_file(source: str, file: SlideFile) -> Path | None:
    """Finds the tissue mask of a slide if `config.tissue.source` is a folder; it may not exist.

    The mask has the name of the slide's file with the ending `.png`, upper or lower case. Where
    several slides have that name, it has the name of the slide's folder of results.

    Raises:
      InputError: it could be another slide's, or there are several.
    """
    if source in ("detect", "off"):
        return None
    stem = file.path.name if file.path.is_dir() else file.path.stem
    is_unique = file.name == re.sub("[\ud800-\udfff]", "_", stem)
    name = stem if is_unique else file.name
    masks = [path for path in Path(source).glob("*") if path.suffix.lower() == ".png"]
    own = sorted(path for path in masks if normalize_name(path.stem) == normalize_name(name))
    if len(own) > 1:
        names = ", ".join(path.name for path in own)
        raise InputError(f"{source}: several masks of {file.path.name} ({names}); keep one")
    is_shared = normalize_name(stem) in {normalize_name(path.stem) for path in masks}
    if is_shared and not own and not is_unique:
        raise InputError(
            f"{file.path}: {Path(source) / stem}.png could be the mask of several slides; name "
            f"its own {name}.png"
        )
    return own[0] if own else Path(source) / f"{name}.png"
