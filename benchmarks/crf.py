"""Measures the dense CRF, beside pydensecrf2 where it is installed.

python -m benchmarks.crf

Patches of drawn tissue, or those of `--images`, with smooth random probabilities of four classes.
Ways are measured in turn, the fastest of `--repeats`; "CPU" is the time of all cores together,
which other load changes less. pydensecrf2 filters on a permutohedral lattice, on one core.
"unlike" is the largest share of pixels of a patch with another class than with every pixel (stride
1), and than pydensecrf2 has. On CPUs every pixel of the wide kernel is measured with one patch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.train import CLASSES
from data import patch_files, synthetic
from wsss_jax.crf import DenseCrf, refine

KERNELS = {
    "HistoSegNet": DenseCrf(),
    "SC-CAM": DenseCrf(10, 3.0, 3.0, 80.0, 13.0, 10.0),
}
THEIRS = "pydensecrf2"
WIDE = 40.0  # pixels; every pixel of wider kernels takes half a minute on CPUs


def draw_patches(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Reads or draws images (B, H, W, 3) uint8; draws unary energies (B, H, W, C)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.images) if args.images else Path(folder) / "data"
        if not args.images:
            synthetic.write_dataset(root, {"train": args.batch}, args.size, seed=0)
            root /= "train"
        paths = sorted(root.rglob("*.png"))[: args.batch]
        whole = [patch_files.read_image(path, None) for path in paths]
    images = np.stack([image[: args.size, : args.size] for image in whole])
    coarse = 2 * jax.random.normal(jax.random.key(0), (len(images), 8, 8, CLASSES))
    logits = jax.image.resize(coarse, (*images.shape[:3], CLASSES), "bilinear")
    return images, np.array(-jax.nn.log_softmax(logits))


def run_ours(program: Callable, unary: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Runs a compiled program, and waits for it."""
    return np.asarray(program(unary, images[: len(unary)]))


def refine_theirs(
    densecrf: ModuleType, unary: np.ndarray, images: np.ndarray, crf: DenseCrf
) -> np.ndarray:
    """Refines patches one by one with pydensecrf2."""
    height, width, classes = unary.shape[1:]
    results = []
    for energies, image in zip(unary, images):
        model = densecrf.DenseCRF2D(width, height, classes)
        model.setUnaryEnergy(
            np.ascontiguousarray(np.moveaxis(energies, -1, 0).reshape(classes, -1))
        )
        model.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_weight)
        model.addPairwiseBilateral(
            sxy=crf.bilateral_sxy,
            srgb=crf.bilateral_srgb,
            rgbim=image.copy(),
            compat=crf.bilateral_weight,
        )
        planes = np.reshape(model.inference(crf.iterations), (classes, height, width))
        results.append(np.moveaxis(planes, 0, -1))
    return np.stack(results)


def make_ways(
    crf: DenseCrf, strides: list[int], patches: tuple[np.ndarray, np.ndarray], theirs: bool
) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """Makes the functions to measure by name, each with its number of patches."""
    images, unary = patches
    ways: dict[str, tuple[int, Callable[[], np.ndarray]]] = {}
    for stride in strides:
        slow = stride == 1 and crf.bilateral_sxy > WIDE and jax.default_backend() == "cpu"
        count = 1 if slow else len(images)
        program = jax.jit(partial(refine, crf=crf._replace(stride=stride)))
        ways[f"ours, stride {stride}"] = count, partial(run_ours, program, unary[:count], images)
    if theirs:
        from pydensecrf import densecrf

        ways[THEIRS] = len(images), partial(refine_theirs, densecrf, unary, images, crf)
    return ways


def time_both(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns wall-clock seconds and those of all cores of one call."""
    start, begun = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - begun


def compare(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest share of pixels of a patch that differ, of the patches both have."""
    return max(float(np.mean(a != b)) for a, b in zip(one, other))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for every kernel and way."""
    patches = draw_patches(args)
    rows = []
    for name in args.kernels:
        crf = KERNELS[name]
        strides = args.wide_strides if crf.bilateral_sxy > WIDE else args.strides
        ways = make_ways(crf, strides, patches, args.theirs)
        labels = {way: function().argmax(axis=-1) for way, (_, function) in ways.items()}
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(args.repeats):
            for way, (_, function) in ways.items():
                times[way].append(time_both(function))
        seconds = {w: min(wall for wall, _ in times[w]) / ways[w][0] for w in ways}
        for way, (count, _) in ways.items():
            rows.append(
                {
                    "kernel": name,
                    "way": way,
                    "patches": count,
                    "s/patch": seconds[way],
                    "CPU s/patch": min(cpu for _, cpu in times[way]) / count,
                    "x pydensecrf2": seconds[THEIRS] / seconds[way] if args.theirs else None,
                    "unlike every pixel": compare(labels[way], labels["ours, stride 1"])
                    if "ours, stride 1" in labels
                    else None,
                    "unlike pydensecrf2": compare(labels[way], labels[THEIRS])
                    if args.theirs
                    else None,
                }
            )
    return rows


def use_theirs(wanted: bool) -> bool:
    """Whether to measure pydensecrf2 too; prints a note if it is wanted but not installed."""
    if not wanted:
        return False
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        print("pydensecrf2 is not installed (pip install pydensecrf2): it is not measured")
        return False
    return True


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", default="", help="folder of PNG patches; cut to the size")
    parser.add_argument("--kernels", nargs="+", choices=[*KERNELS], default=[*KERNELS])
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--wide-strides", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-pydensecrf", dest="theirs", action="store_false")
    args = parser.parse_args()
    args.theirs = use_theirs(args.theirs)
    measure.report("crf", vars(args), run(args))


if __name__ == "__main__":
    main()
