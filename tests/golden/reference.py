"""The recorded numbers of the PyTorch reference, and the weights and images they belong to.

All are golden files (see `wsss_jax.parity.golden`), recorded on a CPU with images of 112x112 pixels
and weights that a formula gives, so no checkpoint is needed:

* `phase1.npz`, `phase2.npz`: the released code in float32, with a few of the gradients;
* `phase2_f64.npz`: the released code in float64, with the same gradients;
* `phase1_f64.npz`: `parity.torch_numbers` in float64; that it computes what the released code does
  is tested in float32 (`parity/test_torch_networks.py`).
"""

import re
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from wsss_jax.interop.torch_names import to_flax

SEED = 1
SIZE = 112
IMAGES = {"phase1": 2, "phase2": 3}


def path(phase: str) -> Path:
    """Returns the path of a golden file, such as "phase1"."""
    return Path(__file__).with_name(f"{phase}.npz")


@lru_cache
def golden(phase: str) -> dict[str, np.ndarray]:
    """Reads all arrays of a golden file."""
    with np.load(path(phase)) as file:
        return {name: file[name] for name in file.files}


def shapes(phase: str) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the published state dict."""
    recorded = golden(phase)
    names, texts = recorded["state_dict_names"], recorded["state_dict_shapes"]
    return {
        str(name): tuple(map(int, re.findall(r"\d+", str(text))))
        for name, text in zip(names, texts, strict=True)
    }


def state_dict(phase: str) -> dict[str, np.ndarray]:
    """Makes the weights at full width."""
    return {name: tensor(name, shape) for name, shape in shapes(phase).items()}


@lru_cache
def variables(phase: str) -> dict[str, dict]:
    """Makes the same weights as variables of the network; shared by all callers: do not write."""
    return to_flax(state_dict(phase))


@lru_cache
def images(phase: str) -> np.ndarray:
    """Makes the images of the recordings, (B, 112, 112, 3) uint8."""
    return np.stack([image(f"img{index}", SIZE, SIZE) for index in range(IMAGES[phase])])


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws the float32 value of a state dict entry, in PyTorch's layout."""
    generator = _generator(name)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        value = generator.uniform(0.5, 1.5, shape)
    elif leaf in ("running_mean", "bias"):
        value = 0.1 * generator.standard_normal(shape)
    elif len(shape) == 1:
        value = generator.uniform(0.8, 1.2, shape)
    else:
        value = generator.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    return value.astype(np.float32)


def image(tag: str, height: int, width: int) -> np.ndarray:
    """Draws an image (H, W, 3) uint8: smooth color fields with texture and a white corner."""
    generator = _generator(tag)
    coarse = generator.uniform(60, 240, (height // 16 + 2, width // 16 + 2, 3))
    top, down = _steps(coarse.shape[0], height)
    left, right = _steps(coarse.shape[1], width)
    down, right = down[:, None, None], right[None, :, None]
    # Summed in this order: the recorded bytes depend on the last bit before rounding.
    smooth = (
        coarse[top][:, left] * (1 - down) * (1 - right)
        + coarse[top + 1][:, left] * down * (1 - right)
        + coarse[top][:, left + 1] * (1 - down) * right
        + coarse[top + 1][:, left + 1] * down * right
    )
    picture = smooth + 12 * generator.standard_normal((height, width, 3))
    corner = (height // 5, width // 5)
    picture[: corner[0], : corner[1]] = 235 + 5 * generator.standard_normal((*corner, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _steps(coarse: int, fine: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns whole and fractional positions of `fine` samples along `coarse` nodes."""
    position = np.linspace(0, coarse - 1.001, fine)
    whole = position.astype(int)
    return whole, position - whole


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), SEED]))
