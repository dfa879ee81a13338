"""Cuts labeled patches out of annotated regions, as the patches of BCSS-WSSS were made."""

import collections
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.dataset import Dataset, derive_label, format_label, is_printable, save_dataset
from data.folders import find_pictures, fold_name
from data.patch_files import read_region, read_values, write_image, write_mask
from data.splits import SPLITS, Region, split_regions
from wsss_jax import workers as worker_processes
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_folder, check_replaceable
from wsss_jax.slides.mapping.tiling import place_tiles

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LARGEST_SIDE = 16384  # pixels of a patch, which then takes 0.8 GB
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

Labels = collections.Counter[tuple[int, ...]]  # multi-hot label -> patches


@dataclasses.dataclass(frozen=True)
class MaskCodes:
    """Which values of a region's mask stand for which class.

    Attributes:
      dataset: describes the classes.
      codes: class name -> mask values, for exactly the classes of `dataset`.
      excluded: mask values that belong to no class.
    """

    dataset: Dataset
    codes: Mapping[str, Sequence[int]]
    excluded: Sequence[int]

    def make_table(self) -> np.ndarray:
        """Returns (256,) int16: mask value -> class index, C for excluded, -1 for neither.

        Raises:
          InputError: other classes, a value outside 0 to 255, or one in two groups.
        """
        if set(self.codes) != set(self.dataset.classes):
            raise InputError(
                f"codes name the classes {', '.join(sorted(self.codes))} but {self.dataset.name} "
                f"has {', '.join(self.dataset.classes)}; name the same ones"
            )
        groups = [(name, self.codes[name]) for name in self.dataset.classes]
        groups.append(("excluded", self.excluded))
        table = np.full(256, -1, np.int16)
        for index, (name, values) in enumerate(groups):
            for value in values:
                if not 0 <= value <= 255:
                    raise InputError(f"codes of {name}: {value} is not a mask value; give 0 to 255")
                if table[value] >= 0:
                    raise InputError(
                        f"codes of {name}: {value} also belongs to {groups[table[value]][0]}; "
                        "give each value to one group"
                    )
                table[value] = index
        return table


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How regions become patches and patches become splits.

    Attributes:
      patch: side of a patch in pixels of the region.
      stride: distance of training patches in pixels of the region, at most `patch`; that of
        validation and test patches is `patch`.
      resize: side of a written patch in pixels.
      shares: of train, val and test in area and in the pixels of each class, as nearly as whole
        regions allow; they add up to 1.
      seed: of the split, which depends on it and on the stems alone.
      min_share: least share of a patch's pixels for a class to be in its label. A training
        patch without any class is left out, and so is one of another split without any
        annotated pixel.
    """

    patch: int
    stride: int
    resize: int
    shares: tuple[float, float, float]
    seed: int
    min_share: float = 0.05

    def check(self) -> None:
        """Checks the fields.

        Raises:
          InputError: names the first one that is impossible.
        """
        for field in ("patch", "stride", "resize"):
            _check_count(field, getattr(self, field))
        if self.stride > self.patch:
            raise InputError(
                f"stride {self.stride} is above patch {self.patch} and would leave gaps; "
                "give at most the patch size"
            )
        if not 0 <= self.min_share < 1:
            raise InputError(f"min_share is {self.min_share}; give a number from 0 to below 1")
        if len(self.shares) != 3 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise InputError(
                f"shares are {self.shares}; give those of train, val and test, adding up to 1"
            )


def cut_patches(
    images: Path, masks: Path, out: Path, codes: MaskCodes, cutting: Cutting, *, workers: int
) -> dict:
    """Writes a data set of patches: `<split>/img`, `<split>/mask`, dataset.json, split.json.

    Training patches carry their label in the file name; their masks serve the fully supervised
    baseline. A region belongs to one split as a whole. Patches cover the whole region: the last
    row and column end at its border, and a region smaller than a patch is padded with white,
    excluded. `out` is complete or absent.

    Args:
      images: folder of RGB regions.
      masks: folder with a PNG of class codes under the stem of each region.
      out: folder to make; it must be new or empty.
      codes: classes of the mask values.
      cutting: size, distance and split of the patches.
      workers: processes.

    Returns:
      regions, patches, left_out: split -> number; labels: split -> classes ("TUM+STR") ->
      number of patches; bad_regions: stem -> why it could not be used.

    Raises:
      InputError: an impossible argument, a mask value in no group, or no usable region.
    """
    table = codes.make_table()
    for folder, what in ((images, "region images"), (masks, "region masks")):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of {what}; correct the path")
    check_replaceable(out)
    cutting.check()
    _check_count("workers", workers)
    # Patches that are made smaller have larger pixels.
    mpp = codes.dataset.mpp and codes.dataset.mpp * cutting.patch / cutting.resize
    dataset = dataclasses.replace(codes.dataset, present_share=cutting.min_share, mpp=mpp)
    pairs, bad = _pair_files(images, masks, dataset)
    survey = functools.partial(_survey_region, table=table, dataset=dataset)
    surveys = list(_map(survey, pairs, workers, "regions read"))
    regions = [region for region, _ in surveys if region is not None]
    bad |= {pair[0]: problem for pair, (_, problem) in zip(pairs, surveys) if problem}
    if not regions:
        reasons = " | ".join(list(bad.values())[:3]) or "no image files"
        raise InputError(f"{images}: no usable region among {len(bad)}: {reasons}")
    split = split_regions(regions, cutting.shares, cutting.seed)

    with atomic_folder(out) as temporary:
        for name in set(split.values()):
            (temporary / name / "img").mkdir(parents=True)
            (temporary / name / "mask").mkdir()
        cut = functools.partial(
            _cut_region, out=temporary, cutting=cutting, table=table, dataset=dataset
        )
        tasks = [(region, split[region.stem]) for region in regions]
        summary = _summarize(tasks, _map(cut, tasks, workers, "regions cut"), dataset)
        save_dataset(dataset, temporary / "dataset.json")
        text = json.dumps(dict(sorted(split.items())), indent=2)
        (temporary / "split.json").write_text(text + "\n", encoding="utf-8")
        if not sum(summary["patches"].values()):
            raise InputError(
                f"{masks}: no patch has a class on {cutting.min_share:.0%} of its pixels"
            )
    return {**summary, "bad_regions": dict(sorted(bad.items()))}


def _check_count(field: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{field} is {value}; give a whole number from 1 on")
    if value > LARGEST_SIDE:
        raise InputError(f"{field} is {value}; give at most {LARGEST_SIDE}")


def _pair_files(
    images: Path, masks: Path, dataset: Dataset
) -> tuple[list[tuple[str, Path, Path]], dict[str, str]]:
    """Pairs images and masks by stem.

    Returns:
      (stem, image, mask) of every region, by stem; stem -> problem of the other files.
    """
    by_stem, masks_by_stem = find_pictures(images), find_pictures(masks)
    same_names = collections.defaultdict(list)
    for stem in by_stem:
        same_names[fold_name(stem)].append(stem)
    ending = f"_x00000_y00000{format_label(dataset.num_classes * [0], dataset)}.png"
    pairs, bad = [], {}
    for stem, paths in by_stem.items():
        usable = _select_types(paths, IMAGE_SUFFIXES)
        pngs = _select_types(masks_by_stem.get(stem, []), (".png",))
        image, mask = (usable or paths)[0], (pngs or [masks / f"{stem}.png"])[0]
        twins = [by_stem[other][0].name for other in same_names[fold_name(stem)] if other != stem]
        if not usable:
            bad[stem] = f"{image}: neither PNG nor JPEG nor TIFF; save it as PNG"
        elif len(usable) > 1:
            bad[stem] = f"{image}: {usable[1].name} has the same stem; remove one"
        elif twins:
            bad[stem] = f"{image}: {twins[0]} differs only in upper and lower case; rename one"
        elif not is_printable(stem):
            bad[stem] = f"{images}: {stem!r} has characters that do not print; rename it"
        elif len(os.fsencode(stem + ending)) > LONGEST_NAME:
            bad[stem] = f"{image}: the names of its patches would be too long; shorten it"
        elif not pngs and stem in masks_by_stem:
            bad[stem] = f"{masks_by_stem[stem][0]}: masks are read from PNG only; save it as PNG"
        elif not pngs:
            bad[stem] = f"{mask}: no such mask; add it or remove {image.name}"
        elif len(pngs) > 1:
            bad[stem] = f"{mask}: {pngs[1].name} has the same stem; remove one"
        else:
            pairs.append((stem, image, mask))
    for stem, paths in masks_by_stem.items():
        if stem not in by_stem and _select_types(paths, (".png",)):
            bad[stem] = f"{paths[0]}: no image with this stem in {images}; add it"
    return pairs, bad


def _select_types(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in suffixes]


def _survey_region(
    pair: tuple[str, Path, Path], table: np.ndarray, dataset: Dataset
) -> tuple[Region | None, str]:
    """Reads a region in full; returns a `Region` and "", or None and the problem."""
    stem, image, mask = pair
    try:
        shape = read_region(image).shape[:2]
        codes = read_values(mask, None)
    except InputError as error:
        return None, str(error)
    if codes.shape != shape:
        return None, (
            f"{mask}: {codes.shape[1]}x{codes.shape[0]} pixels but its image "
            f"{shape[1]}x{shape[0]}; give both the same size"
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


def _cut_region(
    task: tuple[Region, str], out: Path, cutting: Cutting, table: np.ndarray, dataset: Dataset
) -> tuple[Labels, int]:
    """Writes a region's patches; returns how often each label occurs, and patches left out."""
    region, split = task
    image = read_region(region.image, checked=True)
    mask = table[read_values(region.mask, None, checked=True)].astype(np.uint8)
    below, right = (max(cutting.patch - length, 0) for length in mask.shape)
    image = np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=255)
    mask = np.pad(mask, ((0, below), (0, right)), constant_values=dataset.excluded)
    labels: Labels = collections.Counter()
    left_out = 0
    size = (cutting.resize, cutting.resize)
    method = cv2.INTER_AREA if cutting.resize < cutting.patch else cv2.INTER_CUBIC
    stride = cutting.stride if split == "train" else cutting.patch
    tops, lefts = (place_tiles(length, cutting.patch, stride).tolist() for length in mask.shape)
    for top, left in itertools.product(tops, lefts):
        window = np.s_[top : top + cutting.patch, left : left + cutting.patch]
        part = cv2.resize(mask[window], size, interpolation=cv2.INTER_NEAREST_EXACT)
        label = derive_label(part, dataset)
        if not (label.any() if split == "train" else (part < dataset.excluded).any()):
            left_out += 1
            continue
        labels[tuple(label.tolist())] += 1
        stem = f"{region.stem}_x{left:05d}_y{top:05d}"
        if split == "train":
            stem += format_label(label, dataset)
        picture = cv2.resize(image[window], size, interpolation=method)
        write_image(out / split / "img" / f"{stem}.png", picture)
        write_mask(out / split / "mask" / f"{stem}.png", part, dataset)
    return labels, left_out


def _summarize(
    tasks: Sequence[tuple[Region, str]],
    results: Iterator[tuple[Labels, int]],
    dataset: Dataset,
) -> dict:
    """Counts regions, patches and labels per split from the results of `_cut_region`."""
    counts: dict[str, Labels] = {split: collections.Counter() for split in SPLITS}
    left_out, regions = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for (_, split), (labels, skipped) in zip(tasks, results):
        regions[split] += 1
        counts[split] += labels
        left_out[split] += skipped

    def name_label(label: tuple[int, ...]) -> str:
        return "+".join(name for name, on in zip(dataset.classes, label) if on) or "below min_share"

    return {
        "regions": regions,
        "patches": {split: counts[split].total() for split in SPLITS},
        "left_out": left_out,
        "labels": {
            split: {name_label(label): count for label, count in counts[split].most_common()}
            for split in SPLITS
        },
    }


def _map(function: Callable, items: Sequence, workers: int, what: str) -> Iterator:
    """Maps over processes, in order, with a progress line."""
    progress = functools.partial(tqdm, total=len(items), desc=what, unit="region", leave=False)
    if workers == 1:
        yield from progress(map(function, items))
        return
    with worker_processes.open_pool(workers) as pool:
        yield from progress(pool.map(function, items))
