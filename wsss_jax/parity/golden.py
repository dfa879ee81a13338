"""Golden files: recorded numbers of a network on given weights and images, and their names.

An .npz of arrays in PyTorch's layout (NCHW, OIHW). A large tensor `T` is kept as a sample:
`T/values` are the entries at the flat C-order indices `T/indices` of an array of `T/shape`, whose
`T/mean`, `T/std` and `T/absmax` are kept as well. Small tensors and label maps are kept whole.

Phase 1, of ResNet38 with the attention of the released code: `forward/<block>` in evaluation mode;
`pda/<mu>/...` in training mode without dropout; `gradcam/<layer>/<image>` (C, H, W);
`pseudo_mask/<luad|bcss>/<layer>/<image>`, `phase1_segmentation/<image>`, both (H, W). Phase 2, of
DeepLabV3+: `forward/...`; `train/logits` in training mode without dropout;
`gate/prediction_reference`. Both: `grad/<parameter>` of the first of `STEPS` optimizer steps on all
images as one batch, `train/losses` and `train/learning_rates` of each, `running/<buffer>` after the
first, `after3/<parameter>` after the last. The inputs are kept too: `labels` (N, C) in phase 1;
`targets` (3, N, H, W), masks of bn7, b5_2 and b4_5, `gate/probability` (N, C), `metrics/gt` and
`metrics/prediction` in phase 2.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

STEPS = 3
MU = 0.9  # of the attention in the optimizer steps of phase 1
MUS = (1.0, MU, 0.65)  # of the forward passes
CAM_LAYERS = ("b4_3", "b4_5", "b5_2", "bn7")
MASK_LAYERS = ("b4_5", "b5_2", "bn7")  # of the pseudo masks
TARGET_LAYERS = ("bn7", "b5_2", "b4_5")  # of `targets` and `train/loss_parts`, in this order
LEARNING_RATE = {1: 1e-4, 2: 1e-3}  # base rate by phase
TOTAL_STEPS = {1: 10, 2: 8}  # of the polynomial decay

INPUTS = {  # what the numbers are computed from, by phase
    1: ("labels",),
    2: ("targets", "gate/probability", "metrics/gt", "metrics/prediction"),
}
_SAMPLE_SIZE = 64
_SQUARE = 16  # pixels, side of the areas in drawn targets
_PARTS = ("shape", "mean", "std", "absmax", "values", "indices")


class Recorded(NamedTuple):
    """A tensor of a golden file.

    `values` are its entries at the flat `indices`, or all of them, in its shape, where `indices` is
    None. `absmax` is the largest absolute value of the whole tensor.
    """

    shape: tuple[int, ...]
    values: np.ndarray
    indices: np.ndarray | None
    absmax: float


class Golden(NamedTuple):
    """A golden file: `tensors` by name, the `inputs` and the `precision` they were computed in."""

    tensors: dict[str, Recorded]
    inputs: dict[str, np.ndarray]
    precision: str


def record_whole(array: np.ndarray) -> Recorded:
    """Records a tensor whole."""
    absmax = float(np.abs(array.astype(np.float64)).max()) if array.size else 0.0
    return Recorded(array.shape, array, None, absmax)


def load(path: Path, phase: int) -> Golden:
    """Reads a golden file.

    Raises:
      InputError: it is damaged, or not of this phase.
    """
    if not path.is_file():
        raise InputError(f"config.golden: no such file {path}; give a golden file (.npz)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: not a complete golden file (.npz); copy or download it again"
        ) from error
    missing = [name for name in INPUTS[phase][:1] if name not in arrays]
    if missing:
        raise InputError(
            f"{path}: has no {missing[0]!r}, so it is no golden file of phase {phase}; set "
            "--config.phase"
        )
    inputs = {name: arrays[name] for name in INPUTS[phase] if name in arrays}
    tensors = {}
    for name, array in arrays.items():
        tensor, _, part = name.rpartition("/")
        if part == "values" and f"{tensor}/indices" in arrays:
            tensors[tensor] = _read_sample(path, tensor, arrays)
        elif part not in _PARTS and name not in inputs and array.dtype.kind in "fiu":
            tensors[name] = record_whole(array)
    return Golden(tensors, inputs, str(arrays.get("precision", "float32")))


def _read_sample(path: Path, name: str, arrays: Mapping[str, np.ndarray]) -> Recorded:
    missing = [part for part in ("shape", "absmax") if f"{name}/{part}" not in arrays]
    if missing:
        raise InputError(f"{path}: {name}/{missing[0]} is missing; copy or download the file again")
    shape = tuple(int(n) for n in arrays[f"{name}/shape"])
    values, indices = arrays[f"{name}/values"], arrays[f"{name}/indices"]
    in_range = indices.size == 0 or (indices.min() >= 0 and indices.max() < np.prod(shape))
    if values.shape != indices.shape or not in_range:
        raise InputError(
            f"{path}: {name}/indices do not fit the tensor; copy or download the file again"
        )
    return Recorded(shape, values, indices, float(arrays[f"{name}/absmax"]))


def save(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    state_dict: Mapping[str, np.ndarray],
    precision: str,
) -> None:
    """Writes a golden file.

    Args:
      path: `.npz`.
      tensors: by the names above, whole, in PyTorch's layout.
      inputs: what they were computed from.
      state_dict: the weights, of which names and shapes are kept.
      precision: "float32", "bfloat16" or "float64".
    """
    arrays = {**inputs, "precision": np.array(precision)}
    arrays["state_dict_names"] = np.array(list(state_dict))
    arrays["state_dict_shapes"] = np.array([str(list(v.shape)) for v in state_dict.values()])
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f" or tensor.size <= _SAMPLE_SIZE:
            arrays[name] = tensor
            continue
        indices = _sample_indices(name, tensor.size)
        exact = tensor.astype(np.float64)
        arrays |= {
            f"{name}/shape": np.array(tensor.shape),
            f"{name}/mean": exact.mean(),
            f"{name}/std": exact.std(),
            f"{name}/absmax": np.abs(exact).max(),
            f"{name}/values": tensor.reshape(-1)[indices],
            f"{name}/indices": indices,
        }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # NumPy's types take every name for its `allow_pickle`.
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _sample_indices(name: str, size: int) -> np.ndarray:
    """Draws the flat indices to keep of a tensor, by its name: the same in every file."""
    generator = np.random.Generator(np.random.PCG64([zlib.crc32(f"sample:{name}".encode()), 0]))
    return np.sort(generator.choice(size, min(_SAMPLE_SIZE, size), replace=False))


def check_inputs(
    source: str, phase: int, inputs: Mapping[str, np.ndarray], images: np.ndarray, num_classes: int
) -> None:
    """Refuses inputs, from the file or field `source`, of other images or another network.

    Raises:
      InputError: one is missing or of another shape.
    """
    examples, size = len(images), images.shape[1:3]
    shapes = {
        "labels": (examples, num_classes),
        "targets": (len(TARGET_LAYERS), examples, *size),
        "gate/probability": (examples, num_classes),
    }
    for name in INPUTS[phase]:
        if name in shapes and (name not in inputs or inputs[name].shape != shapes[name]):
            shape = inputs[name].shape if name in inputs else "none"
            raise InputError(
                f"{source}: {name} has the shape {shape}, images and weights ask for "
                f"{shapes[name]}; use the images and weights that the file was made from"
            )


def get_kind(name: str) -> str:
    """Returns the first part of a name, such as "forward"."""
    return name.partition("/")[0]


def draw_inputs(
    phase: int, examples: int, num_classes: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Draws the `INPUTS` for N images of (H, W) pixels without labels, always the same."""
    rng = np.random.default_rng(0)
    if phase == 1:
        labels = rng.integers(0, 2, (examples, num_classes))
        labels[np.arange(examples), rng.integers(0, num_classes, examples)] = 1
        return {"labels": labels.astype(np.float32)}
    coarse = [-(-side // _SQUARE) for side in size]
    squares = rng.integers(0, num_classes, (len(TARGET_LAYERS), examples, *coarse))
    # White comes from the image, so it is the same in every layer.
    squares = np.where(rng.random((examples, *coarse)) < 0.1, num_classes, squares)
    targets = squares.repeat(_SQUARE, axis=2).repeat(_SQUARE, axis=3)[..., : size[0], : size[1]]
    return {
        "targets": targets.astype(np.uint8),
        "gate/probability": rng.uniform(0, 0.5, (examples, num_classes)).astype(np.float32),
    }
