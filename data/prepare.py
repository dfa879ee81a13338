"""Cuts labelled patches out of annotated regions, the way the patches of BCSS-WSSS were made."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from data.dataset import Dataset, format_label, is_printable, label_from_mask, save_dataset
from data.folders import (
    find_pictures,
    plain_name,
    read_region,
    read_values,
    write_image,
    write_mask,
)
from wsss_jax import workers as worker_processes
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_folder, check_replaceable
from wsss_jax.slides.mapping.tiling import place_tiles

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LARGEST_SIDE = 16384  # pixels of a patch: its picture takes 0.8 GB
LONGEST_NAME = 255  # bytes of a file name

# The 22 codes of the original BCSS (Amgad et al. 2019) as the four classes of BCSS-WSSS. Invasive
# tumor, angioinvasion and in situ carcinoma are tumor; lymphocytes, plasma cells and the other
# immune cells are one class. Everything else is not among the four and is excluded.
BCSS_CODES: Mapping[str, tuple[int, ...]] = {
    "TUM": (1, 19, 20),
    "STR": (2,),
    "LYM": (3, 10, 11),
    "NEC": (4,),
}
BCSS_EXCLUDED = (0, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 21)


class Grid(NamedTuple):
    """How patches are cut, in pixels of the region: `resize` is the side they are written at."""

    patch: int
    stride: int
    resize: int


class Region(NamedTuple):
    """One annotated region that can be used; `pixels` counts its mask's C + 1 classes."""

    stem: str
    image: Path
    mask: Path
    pixels: tuple[int, ...]


def cut_patches(
    images: Path,
    masks: Path,
    out: Path,
    dataset: Dataset,
    codes: Mapping[str, Sequence[int]],
    excluded: Sequence[int],
    *,
    patch: int,
    stride: int,
    resize: int,
    min_share: float = 0.05,
    shares: tuple[float, float, float],
    seed: int,
    workers: int,
) -> dict:
    """Writes a data set of patches: `<split>/img`, `<split>/mask`, dataset.json, split.json.

    Training patches carry their label in the file name; their masks serve the fully supervised
    baseline. A region belongs to one split as a whole. Patches cover the whole region: the last
    row and column lie flush with its border, and a region smaller than a patch is padded with
    white, excluded. `out` appears complete or not at all.

    Args:
        images: folder of RGB regions; `masks` has a PNG of class codes under each one's stem.
        out: folder to make; must not exist or be empty.
        codes: class name -> mask values; the classes of `dataset`.
        excluded: mask values that belong to no class.
        patch: side of a patch in pixels of the region.
        stride: distance of training patches in pixels of the region, at most `patch`; that of
            validation and test patches is `patch`.
        resize: side of a written patch in pixels.
        min_share: least share of a patch's pixels for a class to be in its label. A training
            patch without any class, and another without any annotated pixel, is left out.
        shares: of train, val and test in area and in the pixels of each class, as nearly as whole
            regions allow; they add up to 1. The split depends on seed and stems alone.
        workers: processes.

    Returns:
        regions, patches, left_out: split -> number; labels: split -> classes ("TUM+STR") ->
        number of patches; bad_regions: stem -> why it could not be used.

    Raises:
        InputError: an impossible argument, a mask value in no group, or no usable region.
    """
    grid = Grid(patch, stride, resize)
    table = _code_table(codes, excluded, dataset)
    _validate(images, masks, out, grid, min_share, shares, workers)
    # Patches that are made smaller have larger pixels.
    mpp = dataset.mpp and dataset.mpp * patch / resize
    dataset = dataclasses.replace(dataset, present_share=min_share, mpp=mpp)
    pairs, bad = _paired(images, masks, dataset)

    regions = []
    survey = functools.partial(_survey, table=table, dataset=dataset)
    for pair, (region, problem) in zip(pairs, _mapped(survey, pairs, workers, "regions read")):
        if region is None:
            bad[pair[0]] = problem
        else:
            regions.append(region)
    if not regions:
        reasons = " | ".join(list(bad.values())[:3]) or "no image files"
        raise InputError(f"{images}: no usable region among {len(bad)}: {reasons}")
    split = split_regions(regions, shares, seed)

    with atomic_folder(out) as temporary:
        for name in set(split.values()):
            (temporary / name / "img").mkdir(parents=True)
            (temporary / name / "mask").mkdir()
        cut = functools.partial(_cut, out=temporary, grid=grid, table=table, dataset=dataset)
        tasks = [(region, split[region.stem]) for region in regions]
        summary = _summary(tasks, _mapped(cut, tasks, workers, "regions cut"), dataset)
        save_dataset(dataset, temporary / "dataset.json")
        text = json.dumps(dict(sorted(split.items())), indent=2)
        (temporary / "split.json").write_text(text + "\n", encoding="utf-8")
        if not sum(summary["patches"].values()):
            raise InputError(f"{masks}: no patch has a class on {min_share:.0%} of its pixels")
    return {**summary, "bad_regions": dict(sorted(bad.items()))}


def split_regions(
    regions: Sequence[Region], shares: tuple[float, float, float], seed: int
) -> dict[str, str]:
    """Region stem -> "train", "val" or "test"; a function of the seed and the stems.

    Regions with a class that few regions have come first, otherwise in an order that the seed
    shuffles. The first go one to each split, the larger the share the larger the region, so that
    no split stays empty. Each further one goes where it disturbs the balance least: the sum over
    splits and quantities (area and each class's pixels) of (share held)^2 / share asked for,
    which is smallest when every split holds what it should.

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

    def rarest_then_shuffled(region: Region) -> tuple[int, bytes]:
        rarest = min(
            (n for n, has in zip(regions_with, region.pixels) if has), default=len(regions)
        )
        return int(rarest), hashlib.sha256(f"{seed}:{region.stem}".encode()).digest()

    order = sorted(regions, key=rarest_then_shuffled)
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


def _validate(
    images: Path,
    masks: Path,
    out: Path,
    grid: Grid,
    min_share: float,
    shares: tuple[float, float, float],
    workers: int,
) -> None:
    for folder, what in ((images, "region images"), (masks, "region masks")):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of {what}; correct the path")
    check_replaceable(out)
    for field, value in (*grid._asdict().items(), ("workers", workers)):
        if value < 1:
            raise InputError(f"{field} is {value}; give a whole number from 1 on")
        if value > LARGEST_SIDE:
            raise InputError(f"{field} is {value}; give at most {LARGEST_SIDE}")
    if grid.stride > grid.patch:
        raise InputError(
            f"stride {grid.stride} is above patch {grid.patch} and would leave gaps; "
            "give at most the patch size"
        )
    if not 0 <= min_share < 1:
        raise InputError(f"min_share is {min_share}; give a number from 0 to below 1")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"shares are {shares}; give those of train, val and test, adding up to 1")


def _code_table(
    codes: Mapping[str, Sequence[int]], excluded: Sequence[int], dataset: Dataset
) -> np.ndarray:
    """(256,) int16: mask value -> class index, C for excluded, -1 for a value in no group."""
    if set(codes) != set(dataset.classes):
        raise InputError(
            f"codes name the classes {', '.join(sorted(codes))} but {dataset.name} has "
            f"{', '.join(dataset.classes)}; name the same ones"
        )
    groups = [(name, codes[name]) for name in dataset.classes] + [("excluded", excluded)]
    table = np.full(256, -1, np.int16)
    for index, (name, values) in enumerate(groups):
        for value in values:
            if not 0 <= value <= 255:
                raise InputError(f"codes of {name}: {value} is no mask value; give 0 to 255")
            if table[value] >= 0:
                raise InputError(
                    f"codes of {name}: {value} also belongs to {groups[table[value]][0]}; "
                    "give each value to one group"
                )
            table[value] = index
    return table


def _paired(
    images: Path, masks: Path, dataset: Dataset
) -> tuple[list[tuple[str, Path, Path]], dict[str, str]]:
    """(stem, image, mask) of every region in the order of the stems, and why others are none."""
    found, found_masks = find_pictures(images), find_pictures(masks)
    alike = collections.defaultdict(list)
    for stem in found:
        alike[plain_name(stem)].append(stem)
    ending = f"_x00000_y00000{format_label(dataset.num_classes * [0], dataset)}.png"
    pairs, bad = [], {}
    for stem, paths in found.items():
        usable = _of_types(paths, IMAGE_SUFFIXES)
        pngs = _of_types(found_masks.get(stem, []), (".png",))
        image, mask = (usable or paths)[0], (pngs or [masks / f"{stem}.png"])[0]
        twins = [found[other][0].name for other in alike[plain_name(stem)] if other != stem]
        if not usable:
            bad[stem] = f"{image}: neither PNG nor JPEG nor TIFF; save it as PNG"
        elif len(usable) > 1:
            bad[stem] = f"{image}: {usable[1].name} has the same stem; remove one"
        elif twins:
            bad[stem] = f"{image}: {twins[0]} differs only in upper and lower case; rename one"
        elif not is_printable(stem):
            bad[stem] = f"{images}: {stem!r} has characters that do not print; rename it"
        elif len(os.fsencode(stem + ending)) > LONGEST_NAME:
            bad[stem] = f"{image}: too long a name for those of its patches; shorten it"
        elif not pngs and stem in found_masks:
            bad[stem] = f"{found_masks[stem][0]}: masks are read from PNG only; save it as PNG"
        elif not pngs:
            bad[stem] = f"{mask}: no such mask; add it or remove {image.name}"
        elif len(pngs) > 1:
            bad[stem] = f"{mask}: {pngs[1].name} has the same stem; remove one"
        else:
            pairs.append((stem, image, mask))
    for stem, paths in found_masks.items():
        if stem not in found and _of_types(paths, (".png",)):
            bad[stem] = f"{paths[0]}: no image with this stem in {images}; add it"
    return pairs, bad


def _of_types(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in suffixes]


def _survey(
    pair: tuple[str, Path, Path], table: np.ndarray, dataset: Dataset
) -> tuple[Region | None, str]:
    """Reads one region in full: a `Region`, or None and the reason."""
    stem, image, mask = pair
    try:
        shape = read_region(image).shape[:2]
        codes = read_values(mask, None)
    except InputError as error:
        return None, str(error)
    if codes.shape != shape:
        return None, (
            f"{mask}: {codes.shape[1]}x{codes.shape[0]} pixels but its image "
            f"{shape[1]}x{shape[0]}; make both alike"
        )
    counts = np.bincount(codes.ravel(), minlength=256)
    unknown = np.flatnonzero((counts > 0) & (table < 0))
    if unknown.size:
        raise InputError(
            f"{mask}: mask value {unknown[0]} is in no group; "
            "add it to the codes of a class or to the excluded ones"
        )
    pixels = np.bincount(np.maximum(table, 0), weights=counts, minlength=dataset.num_classes + 1)
    return Region(stem, image, mask, tuple(int(count) for count in pixels)), ""


def _cut(
    task: tuple[Region, str], out: Path, grid: Grid, table: np.ndarray, dataset: Dataset
) -> tuple[collections.Counter, int]:
    """Writes one region's patches; returns how often each label occurs, and patches left out."""
    region, split = task
    image = read_region(region.image, checked=True)
    mask = table[read_values(region.mask, None, checked=True)].astype(np.uint8)
    below, right = (max(grid.patch - length, 0) for length in mask.shape)
    image = np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=255)
    mask = np.pad(mask, ((0, below), (0, right)), constant_values=dataset.excluded)
    labels, left_out = collections.Counter(), 0
    stride = grid.stride if split == "train" else grid.patch
    tops, lefts = (place_tiles(length, grid.patch, stride).tolist() for length in mask.shape)
    for top in tops:
        for left in lefts:
            window = np.s_[top : top + grid.patch, left : left + grid.patch]
            part = cv2.resize(
                mask[window], (grid.resize, grid.resize), interpolation=cv2.INTER_NEAREST_EXACT
            )
            label = label_from_mask(part, dataset)
            if not (label.any() if split == "train" else (part < dataset.excluded).any()):
                left_out += 1
                continue
            labels[tuple(label.tolist())] += 1
            stem = f"{region.stem}_x{left:05d}_y{top:05d}"
            if split == "train":
                stem += format_label(label, dataset)
            write_image(out / split / "img" / f"{stem}.png", _resized(image[window], grid))
            write_mask(out / split / "mask" / f"{stem}.png", part, dataset)
    return labels, left_out


def _resized(image: np.ndarray, grid: Grid) -> np.ndarray:
    shrinking = grid.resize < grid.patch
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return cv2.resize(image, (grid.resize, grid.resize), interpolation=method)


def _summary(
    tasks: Sequence[tuple[Region, str]],
    results: Iterator[tuple[collections.Counter, int]],
    dataset: Dataset,
) -> dict:
    """Counts per split; also takes the results, and so does the work."""
    counted = {split: collections.Counter() for split in SPLITS}
    left_out, regions = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for (_, split), (labels, missed) in zip(tasks, results):
        regions[split] += 1
        counted[split] += labels
        left_out[split] += missed

    def named(label: tuple[int, ...]) -> str:
        return "+".join(name for name, on in zip(dataset.classes, label) if on) or "below min_share"

    return {
        "regions": regions,
        "patches": {split: counted[split].total() for split in SPLITS},
        "left_out": left_out,
        "labels": {
            split: {named(label): count for label, count in counted[split].most_common()}
            for split in SPLITS
        },
    }


def _mapped(function: Callable, items: Sequence, workers: int, what: str) -> Iterator:
    """`map` in order over processes, with a progress line."""
    progress = functools.partial(tqdm, total=len(items), desc=what, unit="region", leave=False)
    if workers == 1:
        yield from progress(map(function, items))
        return
    with worker_processes.pool(workers) as pool:
        yield from progress(pool.map(function, items))
