"""Measures whether correcting the map of a slide helps more than as many labels anywhere.

python -m benchmarks.corrections

Slides are drawn, so that the truth is known: some have labeled patches, some only get a map, some
are for the test. Both phases are trained on the labeled patches. Then somebody who knows the truth
answers `--corrections` patches of the mapped slides: where the map is most wrong, where it is least
certain, or anywhere. Each time both phases go on from their weights, with the corrections among
their patches, and the test slides say what it was good for. "none" goes on without any.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import tifffile

from benchmarks import measure
from configs import base_labels, base_slides, base_small
from data import synthetic, synthetic_slides
from data.dataset import derive_label, format_label, save_dataset
from data.patch_files import write_image, write_mask
from wsss_jax import jobs
from wsss_jax.labels import correction_folder
from wsss_jax.labels.corrections import Asked, open_corrections
from wsss_jax.slides.reading.catalog import SlideFile

DATASET = synthetic.DATASET
ARMS = ("none", "random", "least certain", "worst")
_MPP = 1.0
_WIDTH, _BLOCKS = 1 / 16, (1, 1, 2, 1)  # of networks that one core trains in minutes
_STRIDE = 32  # of the maps, pixels: half a patch
_SQUARE = 256  # pixels, side of what is drawn at once: a stain and some regions of its own
_MOST_OVERLAP = 0.25  # of two corrected patches, as of those that `configs/sample.py` cuts


class Drawn(NamedTuple):
    """A drawn slide and its truth, (H, W) uint8 of 0..C."""

    file: SlideFile
    image: np.ndarray
    mask: np.ndarray


def draw_slide(folder: Path, name: str, squares: int, seed: Sequence[int]) -> Drawn:
    """Draws a slide of `squares` x `squares` squares and writes it."""
    rng = np.random.default_rng([*seed])
    drawn = [[synthetic.draw_patch(rng, _SQUARE) for _ in range(squares)] for _ in range(squares)]
    image = np.block([[[part[0]] for part in row] for row in drawn])
    mask = np.block([[part[1] for part in row] for row in drawn])
    path = folder / f"{name}.svs"
    synthetic_slides.write_arrays(path, [image], _MPP)
    return Drawn(SlideFile(path, name, None), image, mask)


def cut(slide: Drawn, x: int, y: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts image and truth of a patch by its upper left corner."""
    window = np.s_[y : y + size, x : x + size]
    return slide.image[window], slide.mask[window]


def write_labeled(root: Path, slides: Sequence[Drawn], count: int, size: int, seed: int) -> None:
    """Writes `count` labeled training patches of each slide, at random places with tissue."""
    rng = np.random.default_rng(seed)
    (root / "train").mkdir(parents=True)
    for slide in slides:
        for x, y in draw_places(rng, slide, count, size):
            image, mask = cut(slide, x, y, size)
            label = format_label(derive_label(mask, DATASET), DATASET)
            write_image(root / "train" / f"{slide.file.name}_x{x:05}_y{y:05}{label}.png", image)
    save_dataset(DATASET, root / "dataset.json")


def write_test(root: Path, slides: Sequence[Drawn], size: int) -> None:
    """Writes the test patches, side by side, with their true masks."""
    for part in ("img", "mask"):
        (root / "test" / part).mkdir(parents=True)
    for slide in slides:
        for x, y in list_places(slide, size, size):
            image, mask = cut(slide, x, y, size)
            name = f"{slide.file.name}_x{x:05}_y{y:05}.png"
            write_image(root / "test" / "img" / name, image)
            write_mask(root / "test" / "mask" / name, mask, DATASET)


def list_places(slide: Drawn, size: int, stride: int) -> list[tuple[int, int]]:
    """Lists corners of patches with tissue."""
    height, width = slide.mask.shape
    return [
        (x, y)
        for y in range(0, height - size + 1, stride)
        for x in range(0, width - size + 1, stride)
        if any(derive_label(slide.mask[y : y + size, x : x + size], DATASET))
    ]


def draw_places(
    rng: np.random.Generator, slide: Drawn, count: int, size: int
) -> list[tuple[int, int]]:
    """Draws corners of patches with tissue, none twice."""
    places = list_places(slide, size, size // 4)
    return choose({(slide.file.name, *place): rng.random() for place in places}, count, size)[1]


def choose(
    ranks: dict[tuple[str, int, int], float], count: int, size: int
) -> tuple[list[tuple[str, int, int]], list[tuple[int, int]]]:
    """Chooses the places of highest rank that overlap little; (slide, x, y) and (x, y) of each."""
    chosen: list[tuple[str, int, int]] = []
    for slide, x, y in sorted(ranks, key=lambda place: -ranks[place]):
        if len(chosen) == count:
            break
        wide_tall = [
            (size - abs(x - left), size - abs(y - top))
            for other, left, top in chosen
            if other == slide
        ]
        if all(min(w, t) <= 0 or w * t <= _MOST_OVERLAP * size**2 for w, t in wide_tall):
            chosen.append((slide, x, y))
    return chosen, [(x, y) for _, x, y in chosen]


def rank_places(
    arm: str, slide: Drawn, folder: Path, size: int, rng: np.random.Generator
) -> dict[tuple[str, int, int], float]:
    """Ranks the places of a slide by its map: how wrong, how uncertain, or at random."""
    places = list_places(slide, size, size // 2)
    if arm == "random":
        values = np.zeros(slide.mask.shape)
        ranks = rng.random(len(places)).tolist()
    elif arm == "worst":
        values = tifffile.imread(folder / "label_map.ome.tif") != slide.mask
    else:
        values = 255.0 - tifffile.imread(folder / "probabilities.ome.tif").max(axis=0)
    tissue = slide.mask < DATASET.excluded
    if arm != "random":
        ranks = [float((values * tissue)[y : y + size, x : x + size].mean()) for x, y in places]
    return {(slide.file.name, *place): rank for place, rank in zip(places, ranks, strict=True)}


def shorten(config: ml_collections.ConfigDict, epochs: int) -> ml_collections.ConfigDict:
    """Sets what all trainings here have in common."""
    config.epochs, config.select = epochs, "last"
    config.checkpoint_every = 10**6
    return config


def train(
    root: Path, folder: Path, args: argparse.Namespace, before: Path | None, more: Sequence[str]
) -> None:
    """Trains phase 1, makes masks, and trains phase 2, into `folder`; goes on from `before`."""
    epochs = args.epochs if before is None else args.more_epochs
    first = shorten(base_small.phase1(str(root), args.size, variant="tuned"), epochs)
    first.data.more, first.seed, first.model.width = tuple(more), args.seed, _WIDTH
    second = shorten(base_small.phase2(str(folder / "masks"), "tuned"), epochs)
    second.seed, second.model.width, second.model.blocks = args.seed, 2 * _WIDTH, _BLOCKS
    if before is not None:
        first.init, second.init = str(before / "phase1"), str(before / "phase2")
    jobs.run(first, folder / "phase1")
    masks = base_small.masks(str(folder / "phase1"), "tuned")
    masks.sheet_patches = 0
    jobs.run(masks, folder / "masks")
    jobs.run(second, folder / "phase2")


def score(folder: Path, root: Path) -> float:
    """Scores phase 2 behind the gate of phase 1 on the test patches; mIoU."""
    config = base_small.evaluate(str(folder / "phase1"), str(folder / "phase2"), "paper")
    config.data.root, config.sheet_patches = str(root), 0
    jobs.run(config, folder / "evaluate")
    return float(json.loads((folder / "evaluate" / "scores.json").read_text())["rows"][-1]["miou"])


def map_slides(slides: Path, runs: Path, workdir: Path) -> None:
    """Makes the maps that are corrected, with probabilities."""
    config = base_slides.segment(f"{slides}/m*.svs", str(runs / "phase1"), str(runs / "phase2"))
    config.mpp, config.probabilities, config.stride = _MPP, True, _STRIDE
    config.tissue.source = "off"
    jobs.run(config, workdir)


def correct(
    folder: Path, maps: Path, slides: Sequence[Drawn], arm: str, args: argparse.Namespace
) -> str:
    """Answers as many places as asked for, by the truth; returns the exported data set."""
    rng = np.random.default_rng([args.seed, 7])
    by_name = {slide.file.name: slide for slide in slides}
    ranks: dict[tuple[str, int, int], float] = {}
    for slide in slides:
        ranks |= rank_places(arm, slide, maps / slide.file.name, args.size, rng)
    summary = json.loads((maps / slides[0].file.name / "slide.json").read_text())
    origin = correction_folder.find_origin(maps, summary)
    with open_corrections(folder, origin) as corrections:
        for number, (name, x, y) in enumerate(choose(ranks, args.corrections, args.size)[0]):
            slide = by_name[name]
            label = derive_label(cut(slide, x, y, args.size)[1], DATASET)
            center = (x + args.size / 2, y + args.size / 2)
            answer = "".join(map(str, label.tolist()))
            corrections.take(Asked("program", str(number), number), slide.file, center, answer)
    config = base_labels.export_labels()
    config.data.root = str(folder)
    jobs.run(config, folder)
    return str(folder / "labeled")


def measure_error(maps: Path, slides: Sequence[Drawn]) -> float:
    """Measures which share of the tissue of the mapped slides has the wrong class."""
    wrong = tissue = 0
    for slide in slides:
        label_map = tifffile.imread(maps / slide.file.name / "label_map.ome.tif")
        inside = slide.mask < DATASET.excluded
        wrong += int(((label_map != slide.mask) & inside).sum())
        tissue += int(inside.sum())
    return wrong / tissue


def run_seed(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Does all with one seed; returns mIoU by arm, "before", and the error of the maps."""
    folder.mkdir(parents=True, exist_ok=True)
    slides = folder / "slides"
    slides.mkdir(exist_ok=True)
    drawn = {
        kind: [
            draw_slide(slides, f"{kind}{number}", args.squares, (args.seed, index, number))
            for number in range(count)
        ]
        for index, (kind, count) in enumerate((("l", 2), ("m", args.mapped), ("t", args.tested)))
    }
    root, before, maps = folder / "data", folder / "before", folder / "maps"
    write_labeled(root, drawn["l"], args.labels // 2, args.size, args.seed)
    write_test(root, drawn["t"], args.size)
    train(root, before, args, None, ())
    scores = {"before": score(before, root)}
    map_slides(slides, before, maps)
    scores["error"] = measure_error(maps, drawn["m"])
    for arm in ARMS:
        name = arm.replace(" ", "_")
        more = []
        if arm != "none":
            more = [correct(folder / f"corrections_{name}", maps, drawn["m"], arm, args)]
        train(root, folder / name, args, before, more)
        scores[arm] = score(folder / name, root)
        print(f"seed {args.seed}: {scores}", flush=True)
    return scores


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each seed, and one with the means."""
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        seeded = argparse.Namespace(**{**vars(args), "seed": seed})
        rows.append({"seed": seed, **run_seed(args.folder / f"seed{seed}", seeded)})
    means = {key: statistics.fmean(row[key] for row in rows) for key in rows[0] if key != "seed"}
    return [*rows, {"seed": "mean", **means}]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/corrections"))
    parser.add_argument("--size", type=int, default=64, help="pixels of a patch")
    parser.add_argument("--squares", type=int, default=3, help="side of a slide, in 256 pixels")
    parser.add_argument("--labels", type=int, default=128, help="labeled patches before")
    parser.add_argument("--mapped", type=int, default=3, help="slides with maps to correct")
    parser.add_argument("--tested", type=int, default=3, help="slides of the test")
    parser.add_argument("--corrections", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--more-epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(args.folder / "compiled"))
    settings = {**vars(args), "folder": str(args.folder)}
    measure.report("corrections", settings, run(args))


if __name__ == "__main__":
    main()
