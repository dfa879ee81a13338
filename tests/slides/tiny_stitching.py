"""A tiny image, its tissue and a network, for tests of stitching."""

from typing import Any, NamedTuple

import numpy as np

from wsss_jax.masks import WhiteRule
from wsss_jax.slides.mapping.parts import Layout, Parts
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.stitching import MapInputs, Predict, Read, stitch
from wsss_jax.slides.mapping.tiling import Tiling

CLASSES = 4
KERNEL = np.random.default_rng(5).normal(0, 0.01, (3, 3, 3, CLASSES)).astype(np.float32)


class Mask(NamedTuple):
    """Tissue given pixel by pixel."""

    mask: np.ndarray

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    @property
    def height(self) -> int:
        return self.mask.shape[0]

    def has_tissue(self, x: int, y: int, width: int, height: int) -> bool:
        return bool(self.mask[y : y + height, x : x + width].any())

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self.mask[y : y + height, x : x + width]


def mark_everything(image: np.ndarray) -> Mask:
    """Returns a mask that is tissue everywhere."""
    return Mask(np.ones(image.shape[:2], bool))


def draw_noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Draws random colors."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make_reader(image: np.ndarray) -> Read:
    """Returns what reads regions of an image, white outside."""

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        region = np.full((height, width, 3), 255, np.uint8)
        inside = image[y : y + height, x : x + width]
        region[: inside.shape[0], : inside.shape[1]] = inside
        return region

    return read


def predict(images: np.ndarray) -> np.ndarray:
    """A 3 x 3 convolution with zeros around each tile, so that borders show, and softmax."""
    size = images.shape[1]
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    logits = sum(
        padded[:, i : i + size, j : j + size] @ KERNEL[i, j] for i in range(3) for j in range(3)
    )
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def stitch_image(
    folder: Any,
    image: np.ndarray,
    tissue: Mask,
    tiling: Tiling,
    predict: Predict = predict,
    white: WhiteRule | None = None,
    **options: Any,
) -> Parts:
    """Stitches the map of an image.

    Args:
      folder: of the parts.
      image: (h, w, 3) uint8.
      tissue: of the image.
      tiling: how it is cut.
      predict: the network.
      white: the rule for white background.
      **options: `strip`, `rows` of the layout; `progress` of `stitch`; `gate` of `MapInputs`;
        `left_out` of the plan, as `Plan.without` takes it.
    """
    progress, gate = options.pop("progress", None), options.pop("gate", None)
    plan = Plan.of(tissue, tiling)
    if (left_out := options.pop("left_out", None)) is not None:
        plan = plan.without(left_out)
    layout = Layout(tissue.width, tissue.height, **options)
    parts = Parts(folder, layout, {}, channels=CLASSES)
    inputs = MapInputs(make_reader(image), tissue, predict, CLASSES, white, gate)
    stitch(inputs, plan, parts, progress)
    assert not parts.missing
    return parts
