"""What the quality control of patches says of real tiles, and of tiles that were made bad.

    python -m benchmarks.quality

The first table has a row for each picture in `--tiles`, at the scale that it has. The second says
which share of good patches is dropped as they are (false alarms), and which share is found after
each way of spoiling them. The patches are those of annotated regions (`--tissue`), of which
thresholds were chosen on the even ones ("chosen", "others"), and of a slide (`--slide`), whose
resolution is given by `--slide-mpp`. "Laplacian" judges blur by the variance of the Laplacian, by
the same rule, on the regions.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import measure
from configs import base_slides
from data.patch_files import read_image
from wsss_jax.sampling import quality
from wsss_jax.sampling.selection import Selection, compute_scores, select_patches
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View

MPP = 1.0
SIDE = 224
_SEED = 0
Spoil = Callable[[np.ndarray], np.ndarray]


def spoil_by_blur(sigma: float) -> Spoil:
    """Blurs by a Gaussian of `sigma` micrometers."""
    return lambda patch: cv2.GaussianBlur(patch, (0, 0), sigma / MPP)


def spoil_by_motion(length: int, angle: float) -> Spoil:
    """Blurs along a line of `length` pixels, `angle` degrees from the horizontal."""
    middle = (length - 1) / 2
    line = np.zeros((length, length), np.float32)
    line[length // 2] = 1
    turn = cv2.getRotationMatrix2D((middle, middle), angle, 1)
    kernel = cv2.warpAffine(line, turn, (length, length))
    return lambda patch: cv2.filter2D(patch, -1, kernel / kernel.sum())


def spoil_by_stain(factor: float) -> Spoil:
    """Multiplies the optical density of both stains."""
    table = np.rint(245 * (np.minimum(np.arange(256), 245) / 245) ** factor).astype(np.uint8)
    return lambda patch: table[patch]


def spoil_by_dirt(share: float, color: tuple[int, int, int]) -> Spoil:
    """Covers a share of the patch with clumps of a color."""
    rng = np.random.default_rng(_SEED)

    def spoil(patch: np.ndarray) -> np.ndarray:
        clumps = cv2.GaussianBlur(rng.normal(size=patch.shape[:2]).astype(np.float32), (0, 0), 8)
        covered = (clumps > np.quantile(clumps, 1 - share)).astype(np.float32)
        weight = cv2.GaussianBlur(covered, (0, 0), 1)[..., None]
        return np.rint(patch * (1 - weight) + np.array(color) * weight).astype(np.uint8)

    return spoil


def spoil_by_fold(factor: float) -> Spoil:
    """Lays a band of a quarter of the patch over itself: its optical density is multiplied."""
    darken = spoil_by_stain(factor)

    def spoil(patch: np.ndarray) -> np.ndarray:
        folded = patch.copy()
        folded[80 : 80 + SIDE // 4] = darken(patch[80 : 80 + SIDE // 4])
        return folded

    return spoil


# Name -> how, and the reasons that count as found.
SPOILED: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    **{f"blur, {s} um": (spoil_by_blur(s), ("blurred",)) for s in (0.7, 1.0, 1.5, 3.0)},
    **{f"motion, 5 um, {a} deg": (spoil_by_motion(5, a), ("blurred",)) for a in (0, 30, 90)},
    "motion, 9 um, 30 deg": (spoil_by_motion(9, 30), ("blurred",)),
    **{f"stain x {f}": (spoil_by_stain(f), ("over-stained",)) for f in (1.5, 2.0, 2.5)},
    "gray dust, 5 %": (spoil_by_dirt(0.05, (90, 90, 90)), ("pen", "dark")),
    "black dirt, 10 %": (spoil_by_dirt(0.1, (40, 40, 40)), ("pen", "dark")),
    "brown dirt, 10 %": (spoil_by_dirt(0.1, (90, 60, 30)), ("pen", "dark")),
    "green ink, 10 %": (spoil_by_dirt(0.1, (60, 160, 140)), ("pen", "dark")),
    "blue ink, 10 %": (spoil_by_dirt(0.1, (60, 80, 180)), ("pen", "dark")),
    "red ink, 10 %": (spoil_by_dirt(0.1, (200, 50, 60)), ("pen", "dark")),
    "fold, 3 layers": (spoil_by_fold(3.0), ("dark",)),
}


def judge(patches: np.ndarray, thresholds: Mapping[str, float]) -> Selection:
    """Judges patches as those of one slide."""
    measures = quality.measure_patches(patches, MPP)
    measures["nearest"] = np.full(len(patches), quality.FARTHEST)  # spoiled ones are near their own
    return select_patches(measures, thresholds)


def describe_tiles(folder: Path, thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns a row for each picture, judged alone."""
    rows = []
    for path in sorted(folder.glob("*.png")):
        chosen = judge(read_image(path, None)[None], thresholds)
        values = {column: float(chosen.measures[column][0]) for column in quality.MEASURES}
        verdict = " + ".join(chosen.reasons[0]) or "kept"
        rows.append({"tile": path.stem, "verdict": verdict, **values})
    return rows


def cut_regions(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Cuts regions into patches side by side; returns them, and the number of their region."""
    patches, numbers = [], []
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        image = read_image(path, None)
        for top in range(0, image.shape[0] - SIDE + 1, SIDE):
            for left in range(0, image.shape[1] - SIDE + 1, SIDE):
                patches.append(image[top : top + SIDE, left : left + SIDE])
                numbers.append(number)
    return np.stack(patches), np.array(numbers)


def cut_slide(path: Path, mpp: float) -> np.ndarray:
    """Cuts a slide into patches side by side, those of which less than 60 % is white."""
    with open_slide(path, mpp) as slide:
        view = View(slide, MPP)
        patches = np.stack(
            [
                view.read_alone(left, top, SIDE)
                for top in range(0, view.height - SIDE + 1, SIDE)
                for left in range(0, view.width - SIDE + 1, SIDE)
            ]
        )
    return patches[quality.measure_white(patches) < 0.6]


def find_spoiled(good: np.ndarray, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Finds good patches as they are, and spoiled; what was done to them -> (N,) bool.

    Each spoiled patch is judged among the good ones, as one bad patch on a good slide.
    """
    as_they_are = judge(good, thresholds)
    found = {"as they are": np.array([bool(each) for each in as_they_are.reasons])}
    for name, (spoil, reasons) in SPOILED.items():
        spoiled = np.stack([spoil(patch) for patch in good])
        found[name] = _judge_among(good, spoiled, thresholds, reasons)
    return found


def find_by_laplacian(good: np.ndarray, thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Finds blurred patches by the variance of the Laplacian, as `find_spoiled` does."""
    values = _measure_laplacian(good)
    found = {}
    for name, (spoil, reasons) in SPOILED.items():
        if reasons == ("blurred",):
            spoiled = _measure_laplacian(np.stack([spoil(patch) for patch in good]))
            scores = compute_scores(
                np.concatenate([values, spoiled]), np.arange(2 * len(good)) < len(good), "sharpness"
            )
            found["as they are"] = scores[: len(good)] < -thresholds["max_blur_z"]
            found[name] = scores[len(good) :] < -thresholds["max_blur_z"]
    return found


def measure_detection(
    args: argparse.Namespace, thresholds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Returns a row for each way of spoiling: shares of the patches that are found."""
    good, numbers = cut_regions(Path(args.tissue))
    found, is_chosen = find_spoiled(good, thresholds), numbers % 2 == 0
    on_slide = find_spoiled(cut_slide(Path(args.slide), args.slide_mpp), thresholds)
    laplacian = find_by_laplacian(good, thresholds)
    return [
        {
            "patches": name,
            "chosen": float(each[is_chosen].mean()),
            "others": float(each[~is_chosen].mean()),
            "slide": float(on_slide[name].mean()),
            "Laplacian": float(laplacian[name].mean()) if name in laplacian else None,
        }
        for name, each in found.items()
    ]


def _judge_among(
    good: np.ndarray, spoiled: np.ndarray, thresholds: Mapping[str, float], reasons: tuple[str, ...]
) -> np.ndarray:
    """Judges each spoiled patch in the place of its good one; (N,) bool, whether it is found."""
    measures = quality.measure_patches(good, MPP)
    others = quality.measure_patches(spoiled, MPP)
    found = []
    for index in range(len(good)):
        changed = {column: values.copy() for column, values in measures.items()}
        for column, values in others.items():
            changed[column][index] = values[index]
        changed["nearest"] = np.full(len(good), quality.FARTHEST)
        given = select_patches(changed, thresholds).reasons[index]
        found.append(bool(set(given) & set(reasons)))
    return np.array(found)


def _measure_laplacian(patches: np.ndarray) -> np.ndarray:
    """Measures the logarithm (base 10) of the variance of the Laplacian of the gray values."""
    grays = [cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY) for patch in patches]
    return np.log10([cv2.Laplacian(gray, cv2.CV_64F).var() + 1e-3 for gray in grays])


def run(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the rows of both tables."""
    thresholds = base_slides.sample("unused", "unused").quality.to_dict()
    return (
        describe_tiles(Path(args.tiles), thresholds),
        measure_detection(args, thresholds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiles", default="../shared/data/tiles")
    parser.add_argument("--tissue", default="../shared/data/lung_rois/images")
    parser.add_argument("--slide", default="../shared/data/slides/tcga-cr-7395-01a-01-ts1.svs")
    parser.add_argument("--slide-mpp", type=float, default=0.5, help="of its level 0")
    args = parser.parse_args()
    tiles, detection = run(args)
    print(measure.format_table(tiles))
    measure.report("quality", vars(args), detection)


if __name__ == "__main__":
    main()
