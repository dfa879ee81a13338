"""The job that compares numbers, tensor by tensor, and says which are out of tolerance."""

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data import folders, patch_files
from wsss_jax import config as config_lib
from wsss_jax import methods, runs, spreadsheets
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, check_writable
from wsss_jax.interop import torch_names, weights
from wsss_jax.parity import golden, numbers
from wsss_jax.progress import show_progress
from wsss_jax.state import network_shapes
from wsss_jax.training.initialization import read_weights

# Largest difference as a share of the tensor's largest absolute value, in float32.
TOLERANCES = {
    "forward": 1e-5,
    "pda": 1e-5,
    "phase1_segmentation_label": 1e-5,
    "gradcam": 1e-4,
    "grad": 5e-4,
    "train": 1e-5,
    "running": 1e-5,
    "after3": 1e-5,
    "metrics": 1e-9,
}
PIXELS = 1e-3  # share of the pixels of label maps that may differ
FLOAT64 = 1e-5  # what the tolerances are multiplied by where both sides computed in float64
# What rounding does to a tensor is measured in runs with perturbed weights.
PERTURBATIONS = 4  # runs
AMPLITUDE = 4  # roundings, up or down, of every weight: what a deep network may add up to
ROUNDING = 5  # times as far as in those runs a tensor may be off, but never by
MOST = 0.5  # as a share
# By chance a flip near zero shows in one tensor or in another of these kinds: each is granted what
# a quarter of them exceed.
BY_CHANCE = ("gradcam", "grad", "running", "after3")
TABLE_FILE = "compare.csv"


class Row(NamedTuple):
    """A compared tensor.

    `difference` is the largest absolute one, or the number of differing pixels; `share` is it as a
    share of the tensor's largest absolute value, or of its pixels; `rounding`, such a share too, is
    what rounding does to it, None where that was not measured.
    """

    name: str
    shape: tuple[int, ...]
    difference: float
    share: float
    tolerance: float
    rounding: float | None = None

    @property
    def verdict(self) -> str:
        """ "equal" within the tolerance, "rounding" if not told apart from it, or "DIFFERS"."""
        if self.share <= self.tolerance:
            return "equal"
        if self.rounding is not None and self.share <= min(ROUNDING * self.rounding, MOST):
            return "rounding"
        return "DIFFERS"


def run(config: ml_collections.ConfigDict, workdir: Path) -> bool:
    """Computes this system's numbers, prints the table and says whether all are in tolerance.

    The other side is a golden file or, without one, PyTorch here; with `config.record` and no
    golden file the numbers are recorded and compared with nothing. Writes `compare.csv` into
    `workdir`.

    Raises:
      InputError: weights, images and golden file do not fit together, or PyTorch is missing.
    """
    phase = config.phase
    source = read_weights(config.weights, "weights", f"phase{phase}")
    num_classes = weights.num_classes(source, phase)
    if num_classes is None:
        raise InputError(
            f"{config.weights}: no {weights.CLASSIFIERS[phase]} in it, so it is no checkpoint of "
            f"phase {phase}: set --config.phase or another --config.weights"
        )
    images = _read_images(Path(config.images))
    check_writable(workdir)
    runs.check(config, workdir, started=False)  # the table is made anew
    if config.record:
        check_writable(Path(config.record).parent)
        if os.path.lexists(config.record):
            raise InputError(
                f"config.record: {config.record} is there already: move it or name another"
            )
    _check_network(source, phase, num_classes)
    expected, other_precision = None, config.precision
    if config.golden:
        expected, given, other_precision = golden.load(Path(config.golden), phase)
        _check_inputs(config.golden, phase, given, images, num_classes)
    else:
        given = golden.drawn_inputs(phase, len(images), num_classes, images.shape[1:3])
    double = config.precision == "float64"
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        settings = numbers.settings(phase, config.precision)
        compute = numbers.computer(phase, num_classes, images, given, settings)
        found = compute(source.arrays)
        if config.record:
            golden.save(Path(config.record), found, given, source.arrays, config.precision)
            print(f"recorded {len(found)} tensors in {config.record}")
            if expected is None:
                return True
        if expected is None:
            other_precision = "float64" if double else "float32"
            other = _torch_numbers(phase)(source.arrays, images, given, other_precision)
            expected = {name: golden.whole(array) for name, array in other.items()}
        coarser = max(config.precision, other_precision, key=lambda name: jnp.finfo(name).eps)
        rows = compare(expected, found, FLOAT64 if coarser == "float64" else 1.0)
        if any(row.verdict != "equal" for row in rows):
            rows = with_rounding(rows, expected, found, compute, source.arrays, coarser)
    _print_table(rows)
    config_lib.save(config, workdir)
    _write_table(rows, workdir / TABLE_FILE)
    return all(row.verdict != "DIFFERS" for row in rows)


def compare(
    expected: Mapping[str, golden.Recorded],
    found: Mapping[str, np.ndarray],
    factor: float = 1.0,
) -> list[Row]:
    """Compares every expected tensor with the one found.

    Args:
      expected: by name.
      found: whole tensors by name.
      factor: on the tolerances of floats.

    Raises:
      InputError: a tensor is not among those found, or has another shape there.
    """
    rows = []
    for name, recorded in expected.items():
        shape = found[name].shape if name in found else None
        if shape != recorded.shape:
            raise InputError(
                f"{name} has the shape {recorded.shape} on the other side and {shape} here: name "
                "the weights and images that the golden file was made of"
            )
        difference, share = _difference(recorded, found[name])
        if found[name].dtype == np.uint8:
            tolerance = PIXELS
        else:
            tolerance = TOLERANCES[golden.kind(name)] * factor
        rows.append(Row(name, recorded.shape, difference, share, tolerance))
    return rows


def _difference(recorded: golden.Recorded, tensor: np.ndarray) -> tuple[float, float]:
    """Largest difference and its share, or the number of differing pixels and theirs."""
    values = _entries(tensor, recorded)
    if tensor.dtype == np.uint8:
        differing = int((values != recorded.values).sum())
        return differing, differing / values.size
    difference = np.abs(values.astype(np.float64) - recorded.values)
    if not np.isfinite(difference).all():
        return float("inf"), float("inf")
    largest = float(difference.max())
    return largest, largest / recorded.absmax if recorded.absmax else largest


def _entries(tensor: np.ndarray, recorded: golden.Recorded) -> np.ndarray:
    return tensor if recorded.indices is None else tensor.reshape(-1)[recorded.indices]


def with_rounding(
    rows: list[Row],
    expected: Mapping[str, golden.Recorded],
    found: Mapping[str, np.ndarray],
    compute: numbers.Compute,
    state_dict: Mapping[str, np.ndarray],
    precision: str,
) -> list[Row]:
    """The rows with what rounding does to each tensor.

    Where that is as much as the difference, the tensor cannot tell two programs apart. In phase 1
    a ReLU near zero or a pixel near the cut-off of the attention flips and shows in gradients and
    Grad-CAM. The gradients of phase 2 are ill-conditioned on few images: its pooling branch
    normalizes over as many values as there are images. `precision` is the coarser of both sides.
    """
    epsilon = AMPLITUDE * float(jnp.finfo(precision).eps)
    # What was found, as the other side has it: the same entries are looked at.
    here = {
        name: recorded._replace(values=_entries(found[name], recorded))
        for name, recorded in expected.items()
    }
    rounding = dict.fromkeys(expected, 0.0)
    for seed in show_progress(iterable=range(PERTURBATIONS), desc="what rounding does", unit="run"):
        rng = np.random.default_rng(seed)
        moved = compute(
            {
                name: array * (1 + epsilon * rng.integers(-1, 2, array.shape))
                for name, array in state_dict.items()
            }
        )
        for name, recorded in here.items():
            rounding[name] = max(rounding[name], _difference(recorded, moved[name])[1])
    granted = {
        kind: _exceeded_by_a_quarter([v for k, v in rounding.items() if golden.kind(k) == kind])
        for kind in BY_CHANCE
        if any(golden.kind(name) == kind for name in rounding)
    }
    return [
        row._replace(rounding=max(rounding[row.name], granted.get(golden.kind(row.name), 0.0)))
        for row in rows
    ]


def _exceeded_by_a_quarter(values: list[float]) -> float:
    return float(np.quantile(values, 0.75, method="lower"))


def _read_images(folder: Path) -> np.ndarray:
    """The PNGs of a folder in sorted order, (N, H, W, 3) uint8."""
    paths = list(folders.find_pngs(folder).values()) if folder.is_dir() else []
    if not paths:
        raise InputError(f"config.images: no PNG in {folder}; name a folder of patches")
    images = [patch_files.read_image(path, None) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = ["x".join(map(str, i.shape[:2])) for i in (image, images[0])]
            raise InputError(
                f"{path} has {sizes[0]} pixels and {paths[0].name} {sizes[1]}: leave images of one "
                "size in the folder"
            )
    return np.stack(images)


def _check_network(source: weights.Weights, phase: int, num_classes: int) -> None:
    """Refuses weights that are not exactly those of the network."""
    method = methods.load(f"phase{phase}")
    model = method.build_network(numbers.settings(phase, "float32"), num_classes)
    shapes = network_shapes(model)
    remedy = "name a checkpoint of the networks of the released code, which are of width 1"
    shapes = torch_names.torch_shapes(shapes)
    weights.fit(source, shapes, lambda names: {}, strict=True, remedy=remedy)


def _check_inputs(
    path: str, phase: int, given: Mapping[str, np.ndarray], images: np.ndarray, num_classes: int
) -> None:
    """Refuses a golden file that was made of other images or of another network."""
    examples, size = len(images), images.shape[1:3]
    shapes = {
        "labels": (examples, num_classes),
        "targets": (len(golden.TARGET_LAYERS), examples, *size),
        "gate/probability": (examples, num_classes),
    }
    for name in golden.INPUTS[phase]:
        if name in shapes and (name not in given or given[name].shape != shapes[name]):
            shape = given[name].shape if name in given else "none"
            raise InputError(
                f"{path}: {name} has the shape {shape}, images and weights ask for {shapes[name]}: "
                "name the images and weights that the file was made of"
            )


def _torch_numbers(phase: int) -> Callable[..., dict[str, np.ndarray]]:
    try:
        from wsss_jax.parity import torch_numbers
    except ImportError as error:
        raise InputError(
            f"config.golden is empty, and comparing with PyTorch here needs it ({error}): pip "
            "install torch, or set --config.golden"
        ) from error
    return torch_numbers.phase1 if phase == 1 else torch_numbers.phase2


def _print_table(rows: list[Row]) -> None:
    width = max(len(row.name) for row in rows)
    heading = (
        f"{'tensor':{width}}  {'shape':18}{'max diff':>9}{'relative':>10}{'tolerance':>11}"
        f"{'rounding':>10}  verdict"
    )
    print(heading, "-" * len(heading), sep="\n")
    for row in rows:
        rounding = "" if row.rounding is None else f"{row.rounding:.1e}"
        print(
            f"{row.name:{width}}  {_shape(row):18}{row.difference:9.1e}{row.share:10.1e}"
            f"{row.tolerance:11.1e}{rounding:>10}  {row.verdict}"
        )
    counts = Counter(row.verdict for row in rows)
    print("-" * len(heading))
    print(
        f"{len(rows)} tensors: {counts['equal']} equal within tolerance, {counts['rounding']} not "
        f"told apart from rounding, {counts['DIFFERS']} different"
    )
    if counts["rounding"]:
        print(
            f"rounding: over the tolerance, but not over {ROUNDING} times what {AMPLITUDE} "
            "roundings of every weight do to this tensor, so it cannot tell two programs apart. "
            "Where rounding is out of the way: --config.precision=float64 without a golden file."
        )


def _write_table(rows: list[Row], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, "verdict"])
        for row in rows:
            cells = [*row._replace(shape=_shape(row)), row.verdict]
            writer.writerow(
                [spreadsheets.text(cell) if isinstance(cell, str) else cell for cell in cells]
            )


def _shape(row: Row) -> str:
    return "x".join(map(str, row.shape)) or "scalar"
