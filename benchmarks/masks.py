"""Measures pseudo masks per second, beside the procedure of the released code in PyTorch.

python -m benchmarks.masks --batch 4 --patches 12

Both read patches of drawn tissue from PNG files and write a mask for each of three layers as PNG.
Ours does what the job `masks` does: batches of the loader, one forward pass for all classes and
layers, files written by threads during the next batch. The released procedure takes one patch at a
time and, for each layer and class, a forward and a full backward pass, in float32, with the same
weights; "equal" is the share of pixels on which both agree. "writing" is the time for writing
files, of all threads together, and "waiting" the time in which nothing else is done, both as shares
of the total.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.train import CLASSES, init_variables, make_config
from configs import base
from data import folders, patch_files, synthetic
from wsss_jax import inputs, mask_folders, sources
from wsss_jax.interop import torch_names
from wsss_jax.jobs import masks as masks_job
from wsss_jax.methods import phase1
from wsss_jax.training.trained import Trained

LAYERS = base.layers("reference")
REFERENCE = "PyTorch, as released"


class Timing(NamedTuple):
    """Number of patches, and seconds in all, for writing (all threads) and for waiting for it."""

    patches: int
    seconds: float
    writing: float
    waiting: float


def run_ours(
    precision: str, args: argparse.Namespace, variables: dict, source: sources.Source, out: Path
) -> Timing:
    """Makes masks of the patches of a source as the job does, after one batch without the clock."""
    config = make_config(1, precision, args.width)
    model = phase1.build_network(config, CLASSES)
    classifier = Trained(config, synthetic.DATASET, model, variables)
    job = base.masks("unused", "reference")
    writing = []

    def write(path: Path, mask: np.ndarray) -> None:
        writing.append(
            measure.time_once(lambda: patch_files.write_mask(path, mask, synthetic.DATASET))
        )

    with ThreadPoolExecutor(mask_folders.WRITERS) as pool:
        open_batch = masks_job.make_opener(job, classifier)
        open_batch(next(inputs.read_batches(source, args.batch, workers=0)))
        pending: list[Future] = []
        waiting = 0.0
        start = time.perf_counter()
        for batch in inputs.read_batches(source, args.batch, workers=args.workers):
            label_maps = open_batch(batch)
            waiting += measure.time_once(partial(mask_folders.wait_for, pending))
            pending = [
                pool.submit(write, out / layer / f"{source.names[batch['index'][row]]}.png", mask)
                for layer, of_layer in label_maps.items()
                for row, mask in enumerate(of_layer[: int(batch["weight"].sum())])
            ]
        waiting += measure.time_once(partial(mask_folders.wait_for, pending))
        seconds = time.perf_counter() - start
    return Timing(len(source), seconds, sum(writing), waiting)


def run_reference(
    variables: dict[str, Any], patches: Sequence[folders.Patch], width: float, out: Path
) -> Timing:
    """Makes masks of patches one by one, as the released code does."""
    import torch
    from torch.nn import functional

    from wsss_jax.parity import torch_networks, torch_numbers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch_networks.ResNet38(CLASSES, width)
    state = torch_names.to_torch(jax.device_get(variables))
    network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()})
    network = network.to(device).eval()

    def compute_class_map(x: torch.Tensor, layer: str, index: int) -> torch.Tensor:
        logits, taps = network(x)
        features = taps[layer]
        features.retain_grad()  # as a hook on the layer would
        network.zero_grad()
        logits[0, index].backward()
        channel_weights = features.grad.mean(dim=(2, 3), keepdim=True)
        maps = (features.detach() * channel_weights).sum(dim=1, keepdim=True)
        return functional.interpolate(maps, x.shape[2:], mode="bilinear")[0, 0].cpu()

    def make_masks(patch: folders.Patch) -> Iterator[tuple[Path, np.ndarray]]:
        image = patch_files.read_image(patch.image, None)
        x = torch.from_numpy(image).permute(2, 0, 1)[None].to(device).float() / 255
        present = np.asarray(patch.label)[:, None, None]
        for layer in LAYERS:
            maps = np.stack([compute_class_map(x, layer, index) for index in range(CLASSES)])
            mask = (torch_numbers.normalize(maps) * present).argmax(axis=0).astype(np.uint8)
            mask[torch_numbers.find_white_background(image)] = synthetic.DATASET.excluded
            yield out / layer / f"{patch.stem}.png", mask

    next(make_masks(patches[0]))
    writing = 0.0
    start = time.perf_counter()
    for patch in patches:
        for path, mask in make_masks(patch):
            write = partial(patch_files.write_mask, path, mask, synthetic.DATASET)
            writing += measure.time_once(write)
    # Nothing else is done during a synchronous write.
    return Timing(len(patches), time.perf_counter() - start, writing, writing)


def compare_masks(one: Path, other: Path) -> float:
    """Returns the share of equal pixels in the masks that both folders have."""
    read = partial(patch_files.read_values, size=None)
    pairs = [(path, other / path.relative_to(one)) for path in sorted(one.rglob("*.png"))]
    equal = [np.mean(read(a) == read(b)) for a, b in pairs if b.is_file()]
    return float(np.mean(equal))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for every precision of ours, and one for the released procedure."""
    config = make_config(1, "float32", args.width)
    variables = init_variables(phase1.build_network(config, CLASSES))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config.data.root, config.data.patch_size = str(root / "data"), args.size
        synthetic.write_dataset(root / "data", {"train": args.patches}, args.size, seed=0)
        source = sources.open_source(config.data, synthetic.DATASET, "train")
        ours = {f"ours, {precision}": precision for precision in args.precision}
        for name in [*ours, REFERENCE]:
            for layer in LAYERS:
                (root / name / layer).mkdir(parents=True)
        timings = {
            name: run_ours(precision, args, variables, source, root / name)
            for name, precision in ours.items()
        }
        if args.torch:
            patches = folders.list_labeled_patches(root / "data", "train", synthetic.DATASET)
            chosen = patches[: args.reference_patches]
            timings[REFERENCE] = run_reference(variables, chosen, args.width, root / REFERENCE)
        rates = {name: timing.patches / timing.seconds for name, timing in timings.items()}
        return [
            {
                "way": name,
                "patches": timing.patches,
                "s/patch": 1 / rates[name],
                "masks/s": len(LAYERS) * rates[name],
                "writing": timing.writing / timing.seconds,
                "waiting": timing.waiting / timing.seconds,
                "x the released way": rates[name] / rates[REFERENCE] if args.torch else None,
                "equal": compare_masks(root / REFERENCE, root / name) if args.torch else None,
            }
            for name, timing in timings.items()
        ]


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    precisions = ("float32", "tensorfloat32", "bfloat16")
    parser = measure.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=4 if on_cpu else 64)
    parser.add_argument("--patches", type=int, default=12 if on_cpu else 640, help="of ours")
    parser.add_argument("--reference-patches", type=int, default=1 if on_cpu else 8)
    parser.add_argument("--workers", type=int, default=0 if on_cpu else 4, help="that decode")
    parser.add_argument(
        "--precision", nargs="+", choices=precisions, default=precisions[: 1 if on_cpu else 3]
    )
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes look at absl's flags
    args.torch = measure.use_torch(args.torch)
    measure.report("masks", vars(args), run(args))


if __name__ == "__main__":
    main()
