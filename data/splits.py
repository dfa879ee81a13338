"""Distribution of annotated regions over the training, validation and test split."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss_jax.errors import InputError

SPLITS = ("train", "val", "test")


class Region(NamedTuple):
    """A usable annotated region; `pixels` counts the C + 1 classes in its mask."""

    stem: str
    image: Path
    mask: Path
    pixels: tuple[int, ...]


def split_regions(
    regions: Sequence[Region], shares: tuple[float, float, float], seed: int
) -> dict[str, str]:
    """Assigns each region's stem to "train", "val" or "test", by the seed and the stems alone.

    Regions with a class that few regions have come first, otherwise in an order that the seed
    shuffles. The first ones go one to each split, a larger region to a larger share, so that no
    split is empty. Each further one goes where the sum over splits and quantities (area and each
    class's pixels) of (share held)^2 / share wanted grows least; this sum is smallest when every
    split holds what it should.

    Raises:
      InputError: fewer regions than splits with a share above 0.
    """
    wanted = sorted((share, name) for share, name in zip(shares, SPLITS) if share > 0)[::-1]
    if len(regions) < len(wanted):
        raise InputError(
            f"{len(regions)} usable regions cannot fill {len(wanted)} splits; "
            "set the share of a split to 0 or add regions"
        )

    regions_with = np.count_nonzero([region.pixels[:-1] for region in regions], axis=0)

    def make_sort_key(region: Region) -> tuple[int, bytes]:
        rarest = min(
            (n for n, has in zip(regions_with, region.pixels) if has), default=len(regions)
        )
        return int(rarest), hashlib.sha256(f"{seed}:{region.stem}".encode()).digest()

    order = sorted(regions, key=make_sort_key)
    amounts = {r.stem: np.array([sum(r.pixels), *r.pixels[:-1]], np.float64) for r in order}
    totals = np.maximum(sum(amounts.values()), 1)
    held = {name: np.zeros(len(totals)) for _, name in wanted}
    split = {}
    first = sorted(order[: len(wanted)], key=lambda region: -sum(region.pixels))
    for region, (_, name) in zip(first, wanted):
        split[region.stem] = name
        held[name] += amounts[region.stem] / totals
    for region in order[len(wanted) :]:
        amount = amounts[region.stem] / totals
        costs = [((2 * held[name] + amount) @ amount / share, name) for share, name in wanted]
        name = min(costs)[1]
        split[region.stem] = name
        held[name] += amount
    return split
