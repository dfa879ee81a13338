"""Tiles whose tissue is all white background: no network is asked, as their labels are known."""

from collections.abc import Callable
from contextlib import closing

import cv2
import numpy as np

from wsss_jax.slides.mapping.parts import STRIP, Part
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.stitching import READERS, MapInputs, find_tissue, map_in_threads


def find(
    inputs: MapInputs,
    plan: Plan,
    overview: np.ndarray,
    factor: float,
    after_tile: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Finds the tiles of a plan in which no pixel gets a class, whatever the networks say.

    The rule for white background decides on the pixels of the map, so that leaving these tiles out
    changes no label. Only tiles that are white in the overview are read.

    Args:
      inputs: what the map is computed from, with a rule for white background.
      plan: all tiles.
      overview, factor: from `View.read_overview`.
      after_tile: called after each tile that was read; its errors end the search.

    Returns:
      (N,) bool, in the order of `plan.tiles`.
    """
    rule, tile = inputs.white, plan.tiling.tile
    is_white = np.zeros(len(plan.tiles), bool)
    if rule is None:
        return is_white
    gray = cv2.cvtColor(overview, cv2.COLOR_RGB2GRAY)
    candidates = [
        i
        for i, place in enumerate(plan.tiles)
        if _find_darkest(gray, place, tile, factor) > rule.threshold
    ]
    # Strip by strip, as the map is made: rows of tiles over the whole slide overlap, and what they
    # cover is more than the slide's view keeps.
    candidates.sort(key=lambda i: plan.tiles[i, 0] // STRIP)

    def check(i: int) -> tuple[int, bool]:
        x, y = plan.tiles[i].tolist()
        part = Part(x, y, min(x + tile, plan.width), min(y + tile, plan.height))
        return i, not find_tissue(part, inputs).any()

    with closing(map_in_threads(check, candidates, READERS)) as checked:
        for i, white in checked:
            is_white[i] = white
            after_tile()
    return is_white


def _find_darkest(gray: np.ndarray, place: np.ndarray, tile: int, factor: float) -> int:
    """Returns the darkest pixel of a tile in the overview."""
    x0, y0 = np.floor(place / factor).astype(int)
    x1, y1 = np.ceil((place + tile) / factor).astype(int)
    return int(gray[y0:y1, x0:x1].min())
