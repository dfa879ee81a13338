"""Compares the maps of two workdirs: which slides both have, and where their maps differ."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.report import figures, slide_pages, slide_pictures
from wsss_jax.report.colors import make_colorblind_palette
from wsss_jax.report.legend import Legend
from wsss_jax.slides import comparison_files
from wsss_jax.slides.map_agreement import (
    Comparison,
    count_pairs,
    find_common_classes,
    place_on_frame,
)
from wsss_jax.slides.mapping.parts import list_changes
from wsss_jax.slides.outputs import results, thumbnails
from wsss_jax.slides.outputs.label_maps import LabelMap, open_label_map

_GAP = 12  # pixels between the two halves of a picture
_NO_CLASS = (90, 90, 90)  # color of what is excluded; white would not show on glass
_FLAT = 0.7  # height / width under which a slide counts as wide
_FADED = 0.5  # how much lighter the slide is behind differences


class Pair(NamedTuple):
    """The folders of a slide's results in both workdirs."""

    first: Path
    second: Path


class Matches(NamedTuple):
    """Which slides two workdirs share.

    Attributes:
      pairs: of folders with maps of one slide.
      first_only, second_only: names of slides that only one has.
      differing: names of folders that both have, of slides with other content.
    """

    pairs: list[Pair]
    first_only: list[str]
    second_only: list[str]
    differing: list[str]


def match_slides(first: Path, second: Path) -> Matches:
    """Matches the finished slides of two workdirs by the content of their files.

    Args:
      first, second: workdirs, or the folders of single slides.

    Raises:
      InputError: one of them has no finished map.
    """
    ours, free = _list_maps(first), _list_maps(second)
    pairs: list[Pair] = []
    first_only = []
    for folder, summary in ours.items():
        same = [each for each, other in free.items() if _is_same_slide(summary, other)]
        if not same:
            first_only.append(folder)
            continue
        # Copies of a slide have maps of their own: the one of the same name belongs here.
        chosen = min(same, key=lambda each: each.name != folder.name)
        pairs.append(Pair(folder, chosen))
        del free[chosen]
    names = {folder.name for folder in free}
    differing = [folder.name for folder in first_only if folder.name in names]
    return Matches(
        pairs,
        [folder.name for folder in first_only if folder.name not in differing],
        [name for name in sorted(names) if name not in differing],
        differing,
    )


def _list_maps(folder: Path) -> dict[Path, dict[str, Any]]:
    if (summary := results.read_summary(folder)) is not None:
        return {folder: summary}
    found = dict(results.list_finished(folder)) if folder.is_dir() else {}
    if not found:
        raise InputError(
            f"config.maps: {folder} has no finished map of a slide: name a workdir of the job "
            "'segment', or the folder of a slide in it"
        )
    return found


def _is_same_slide(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    marks = [summary["settings"]["map"].get("slide") for summary in (one, other)]
    return marks[0] is not None and marks[0] == marks[1]


def compare_slide(pair: Pair, palette: str, folder: Path) -> Comparison:
    """Compares the maps of a slide; writes `difference.png` and `report.html`.

    Args:
      pair: the folders of the maps.
      palette: of the pictures, "dataset" or "colorblind".
      folder: where to write.

    Raises:
      InputError: a map is damaged, or they cannot be compared.
    """
    with open_label_map(pair.first) as first, open_label_map(pair.second) as second:
        legend, tables = find_common_classes(first.legend, second.legend)
        if palette == "colorblind":
            colors = make_colorblind_palette(len(legend.names))
            legend = Legend(legend.names, [*colors, legend.palette[legend.excluded]])
        frame = first.frame
        readers = first.read_rows, place_on_frame(second, frame)
        counts = count_pairs(*readers, frame, tables)
        thumbnail = thumbnails.read_thumbnail(pair.first)
        labels = [
            table[thumbnails.sample_labels(read_rows, thumbnail, frame)]
            for table, read_rows in zip(tables, readers)
        ]
        notes = _list_notes(pair, first, second)
    comparison = Comparison(pair.first.name, legend, frame.mpp, counts, notes)
    um = thumbnails.measure_pixel(thumbnail, frame)
    maps = [slide_pictures.SlidePictures(thumbnail, each, um, legend) for each in labels]
    slide_pictures.write_png(folder / comparison_files.DIFFERENCE, draw_difference(*maps))
    pages = [os.path.relpath(each / slide_pages.REPORT, folder) for each in pair]
    overlays = [slide_pictures.draw_overlay(each) for each in maps]
    comparison_files.write_slide_page(folder, comparison, overlays, pages)
    return comparison


def _list_notes(pair: Pair, first: LabelMap, second: LabelMap) -> list[str]:
    """Says what is not the same of two maps, and how that was dealt with."""
    notes = []
    one, other = first.frame, second.frame
    if (one.width, one.height, one.scale) != (other.width, other.height, other.scale):
        notes.append(
            f"The maps have {one.mpp:g} and {other.mpp:g} micrometers per pixel: the second was "
            "read at the pixels of the first, by the nearest neighbor on the slide."
        )
    if set(first.legend.names) != set(second.legend.names):
        lacking = [
            name
            for names, others in itertools.permutations((first.legend.names, second.legend.names))
            for name in names
            if name not in others
        ]
        notes.append(f"Classes of one map only: {', '.join(lacking)}.")
    settings = [(results.read_summary(each) or {})["settings"]["map"] for each in pair]
    if changes := list_changes(*settings):
        notes.append(f"The maps were made with other {', '.join(changes)}.")
    return notes


def draw_difference(
    first: slide_pictures.SlidePictures, second: slide_pictures.SlidePictures
) -> np.ndarray:
    """Draws where two maps differ: twice, in the colors of the first and of the second.

    Returns:
      (h, w, 3) uint8 RGB, with legend and scale bar.
    """
    thumbnail, _, um, legend = first
    colors = [*legend.palette[: legend.excluded], _NO_CLASS]
    differs = first.labels != second.labels
    gray = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=-1)
    faded = (255 - (255 - gray.astype(np.float32)) * (1 - _FADED)).astype(np.uint8)
    height, width = differs.shape
    beside = int(height >= width * _FLAT)  # wide slides lie one above the other
    halves = [
        np.where(differs[..., None], figures.colorize(each.labels, colors), faded)
        for each in (first, second)
    ]
    size = (height, _GAP) if beside else (_GAP, width)
    gap = np.full((*size, 3), 255, np.uint8)
    whole = np.concatenate([halves[0], gap, halves[1]], axis=beside)
    entries = Legend([*legend.names, "no class"], [*colors, _NO_CLASS])
    places = ("Left", "right") if beside else ("Above", "below")
    title = [f"Where the maps differ. {places[0]}: as in the first; {places[1]}: in the second"]
    pictures = slide_pictures.SlidePictures(whole, first.labels, um, entries)
    return slide_pictures.draw_framed(whole, pictures, title=title)
