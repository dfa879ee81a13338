"""Compares this system's numbers with the reference's, tensor by tensor."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from data import folders, patch_files
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import runs, spreadsheets
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, check_writable
from wsss_jax.interop import torch_names, weights
from wsss_jax.methods.contract import load_method
from wsss_jax.parity import golden, judgment, numbers
from wsss_jax.state import network_shapes
from wsss_jax.training.initialization import read_weights

FIELDS = {
    "phase": rules.integer(1, 2),
    "weights": rules.NAME,
    "images": rules.NAME,
    "golden": rules.TEXT,
    "record": rules.TEXT,
    "precision": rules.one_of("float32", "bfloat16", "float64"),
}
TABLE_FILE = "compare.csv"


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Prints the comparison; exit code 1 if any number differs."""
    if not compare(config, workdir):
        sys.exit(1)


def compare(config: ml_collections.ConfigDict, workdir: Path) -> bool:
    """Computes this system's numbers, prints the table and says whether no tensor differs.

    The other side is a golden file or, without one, PyTorch here. With `config.record` and no
    golden file the numbers are recorded and compared with nothing. Writes `compare.csv` into
    `workdir`.

    Raises:
      InputError: weights, images and golden file do not fit together, or PyTorch is missing.
    """
    phase, precision = config.phase, config.precision
    method = f"phase{phase}"
    source = read_weights(config.weights, "weights", method)
    num_classes = weights.count_classes(source, method)
    if num_classes is None:
        raise InputError(
            f"{config.weights}: has no {weights.CLASSIFIERS[method]}, so it is no checkpoint of "
            f"phase {phase}; set --config.phase or another --config.weights"
        )
    images = _read_images(Path(config.images))
    check_writable(workdir)
    runs.check(config, workdir, started=False)  # the table is written again
    if config.record:
        check_writable(Path(config.record).parent)
        if os.path.lexists(config.record):
            raise InputError(
                f"config.record: {config.record} already exists; move it or choose another name"
            )
    _check_network(source, phase, num_classes)
    if config.golden:
        other = golden.load(Path(config.golden), phase)
        golden.check_inputs(config.golden, phase, other.inputs, images, num_classes)
    else:
        inputs = golden.draw_inputs(phase, len(images), num_classes, images.shape[1:3])
        torch_precision = "float64" if precision == "float64" else "float32"
        other = golden.Golden({}, inputs, torch_precision)
    compares = bool(config.golden or not config.record)
    judged = judgment.Judgment(phase, precision, other.precision)
    if compares:
        print(judged.describe())

    with jax.enable_x64(True) if precision == "float64" else contextlib.nullcontext():
        settings = numbers.make_config(phase, precision)
        compute = numbers.make_compute(phase, num_classes, images, other.inputs, settings)
        computed = compute(source.arrays)
        if config.record:
            golden.save(Path(config.record), computed, other.inputs, source.arrays, precision)
            print(f"recorded {len(computed)} tensors in {config.record}")
        if not compares:
            return True
        expected = other.tensors or _compute_with_torch(judged, source.arrays, images, other.inputs)
        rows = judgment.compare(expected, computed, judged)
        if not judged.is_exact and any(row.verdict != "equal" for row in rows):
            rounding = judgment.measure_rounding(
                compute, source.arrays, computed, expected, judged.coarser
            )
            rows = [row._replace(rounding=rounding[row.name]) for row in rows]
    _print_table(rows)
    config_lib.save(config, workdir)
    _write_table(rows, workdir / TABLE_FILE)
    return all(row.verdict != "DIFFERS" for row in rows)


def _read_images(folder: Path) -> np.ndarray:
    """Reads the PNGs of a folder in sorted order, (N, H, W, 3) uint8."""
    paths = list(folders.find_pngs(folder).values()) if folder.is_dir() else []
    if not paths:
        raise InputError(f"config.images: no PNG in {folder}; give a folder of patches")
    images = [patch_files.read_image(path, None) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = ["x".join(map(str, i.shape[:2])) for i in (image, images[0])]
            raise InputError(
                f"{path} has {sizes[0]} pixels and {paths[0].name} {sizes[1]}; leave images of one "
                "size in the folder"
            )
    return np.stack(images)


def _check_network(source: weights.Weights, phase: int, num_classes: int) -> None:
    """Refuses weights that are not exactly those of the network."""
    settings = numbers.make_config(phase, "float32")
    network = load_method(f"phase{phase}").build_network(settings, num_classes)
    shapes = torch_names.torch_shapes(network_shapes(network))
    remedy = "give a checkpoint of the networks of the released code, which are of width 1"
    weights.fit(source, shapes, lambda names: {}, strict=True, remedy=remedy)


def _compute_with_torch(
    judged: judgment.Judgment,
    state_dict: Mapping[str, np.ndarray],
    images: np.ndarray,
    inputs: Mapping[str, np.ndarray],
) -> dict[str, golden.Recorded]:
    try:
        from wsss_jax.parity import torch_numbers
    except ImportError as error:
        raise InputError(
            f"config.golden is empty, and comparing with PyTorch here needs it ({error}); pip "
            "install torch, or set --config.golden"
        ) from error
    compute = torch_numbers.phase1 if judged.phase == 1 else torch_numbers.phase2
    computed = compute(state_dict, images, inputs, judged.other_precision)
    return {name: golden.record_whole(array) for name, array in computed.items()}


def _print_table(rows: Sequence[judgment.Row]) -> None:
    width = max(len(row.name) for row in rows)
    heading = (
        f"{'tensor':{width}}  {'shape':18}{'max diff':>9}{'relative':>10}{'tolerance':>11}"
        f"{'rounding':>10}  verdict"
    )
    print(heading, "-" * len(heading), sep="\n")
    for row in rows:
        rounding = "" if row.rounding is None else f"{row.rounding:.1e}"
        print(
            f"{row.name:{width}}  {_format_shape(row):18}{row.difference:9.1e}{row.share:10.1e}"
            f"{row.tolerance:11.1e}{rounding:>10}  {row.verdict}"
        )
    counts = Counter(row.verdict for row in rows)
    print("-" * len(heading))
    print(
        f"{len(rows)} tensors: {counts['equal']} equal within tolerance, {counts['rounding']} "
        f"explained by rounding, {counts['DIFFERS']} different"
    )
    if counts["rounding"]:
        print(
            "rounding: over the tolerance, but by no more than "
            f"{judgment.ALLOWANCE} times what {judgment.PERTURBATION} roundings of every weight do "
            "to this tensor, so it cannot tell two programs apart. To compare without rounding: "
            "--config.precision=float64, without a golden file or with one recorded in float64."
        )


def _write_table(rows: Sequence[judgment.Row], path: Path) -> None:
    lines = [
        [spreadsheets.escape_text(row.name), _format_shape(row), *row[2:], row.verdict]
        for row in rows
    ]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        spreadsheets.write_rows(file, [[*judgment.Row._fields, "verdict"], *lines])


def _format_shape(row: judgment.Row) -> str:
    return "x".join(map(str, row.shape)) or "scalar"
