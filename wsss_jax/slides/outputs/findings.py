"""What a map says besides its areas: how certain it is, and which places deserve a look."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from data.dataset import Dataset
from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pictures import SlidePictures
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.mapping.parts import Parts
from wsss_jax.slides.outputs.confidence import Confidence, read_highest
from wsss_jax.slides.outputs.places import (
    KINDS,
    HotSpots,
    Place,
    UncertainPlaces,
    find_largest_regions,
)
from wsss_jax.slides.reading.view import View

KEYS = ("places", "confidence")  # of the summary
# Settings of "output" that they depend on, besides all of "map".
_DEPENDS = ("classes", "roles", "probabilities", *KEYS)


def collect_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Collects the settings of "output" that findings alone depend on.

    What is not looked for has none, as in summaries of versions that looked for nothing.
    """
    settings: dict[str, Any] = {}
    if config.places.per_kind:
        settings["places"] = config.places.to_dict()
    if config.probabilities and config.confidence:
        settings["confidence"] = config.confidence
    return settings


def keep(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the findings of an earlier summary of the same map, None if they are outdated.

    Args:
      before: the summary.
      now: the current settings.
    """
    old, new = before["settings"]["output"], now["output"]
    if any(old.get(key) != new.get(key) for key in _DEPENDS):
        return None
    places = before.get("places", [])
    if any(key in new and key not in before for key in KEYS):
        return None
    if any(place["kind"] not in KINDS for place in places):  # of a later version
        return None
    return {"places": places, "confidence": before.get("confidence")}


def find(
    config: ml_collections.ConfigDict, dataset: Dataset, frame: MapFrame, parts: Parts
) -> dict[str, Any]:
    """Finds them on the whole map.

    Args:
      config: of the job "segment".
      dataset: of the networks.
      frame: of the map.
      parts: all of it.

    Returns:
      "places", dicts of `places.Place`, by kind; and "confidence" (see `Confidence.summarize`),
      None without stored probabilities.
    """
    most, names = config.places.per_kind, dataset.classes
    hot_spots = HotSpots(config.places.hot_spot, frame, names, dataset.roles)
    uncertain = UncertainPlaces(config.places.uncertain, frame)
    confidence = Confidence(config.confidence, dataset.num_classes)
    if most or config.probabilities:
        for part, read_map in parts.iterate():
            labels = read_map(0)
            is_class = labels < dataset.excluded
            if not is_class.any():
                continue
            hot_spots.add(part, labels)
            if config.probabilities:
                highest = read_highest(read_map, dataset.num_classes)
                confidence.add(labels, highest)
                uncertain.add(part, is_class, np.where(is_class, highest, np.uint8(0)))
    found: list[Place] = []
    if most:
        found += [*find_largest_regions(parts.read, frame, names), *hot_spots.find(most)]
        if config.probabilities:
            found += uncertain.find(most)
    measured = config.probabilities and config.confidence
    return {
        "places": [place._asdict() for place in found],
        "confidence": confidence.summarize(names) if measured else None,
    }


def make_pictures(
    view: View, parts: Parts, places: Sequence[Mapping[str, Any]], side: int, legend: Legend
) -> list[SlidePictures]:
    """Reads the middle of each place at the resolution of the map.

    Args:
      view: the slide at that resolution.
      parts: the map.
      places: of the summary.
      side: of a picture in pixels; less where the slide is smaller.
      legend: with the colors of pictures.
    """
    side = min(side, view.width, view.height)
    pictures = []
    for place in places:
        x, y = (
            max(0, min(round(at / scale - side / 2), size - side))
            for at, scale, size in zip(place["center"], view.scale, (view.width, view.height))
        )
        thumbnail = view.read_alone(x, y, side)
        labels = parts.read(y, y + side)[:, x : x + side]
        pictures.append(SlidePictures(thumbnail, labels, view.mpp, legend))
    return pictures
