"""Draws synthetic tissue: four textures that look like H&E and differ in form, not in color.

Each tissue is drawn as two maps, the amounts of hematoxylin and of eosin, in a smooth region of
its own. Both are then scaled to means drawn per patch and region from ranges that are nearly the
same for the four tissues, and turned into color by the Beer-Lambert law with stain vectors that
vary per patch. So nuclei and fibers (3 to 12 pixels) tell the tissues apart; the mean color hardly
does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.dataset import Dataset, derive_label, format_label, save_dataset
from data.patch_files import write_image, write_mask
from wsss_jax import workers as worker_processes
from wsss_jax.files import atomic_folder

TUMOR, NECROSIS, LYMPHOCYTES, STROMA = range(4)
DATASET = Dataset(
    name="synthetic tissue",
    classes=("tumor", "necrosis", "lymphocytes", "stroma"),
    palette=((205, 51, 51), (0, 200, 0), (65, 105, 225), (255, 165, 0), (255, 255, 255)),
    white=True,
    label_notation="spaces",
    present_share=0.05,
)

# Optical density of red, green, blue per unit of stain (Ruifrok & Johnston 2001).
HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
# Mean amounts of (hematoxylin, eosin) added for each tissue: a hint of its real color.
TINT = {TUMOR: (0.02, 0.0), NECROSIS: (-0.02, 0.02), LYMPHOCYTES: (0.03, -0.02), STROMA: (-0.02, 0)}
TISSUE_COUNTS = (0.4, 0.4, 0.2)  # share of patches with one, two and three tissues
WHITE_SHARE = 0.35  # share of patches with white background
MIN_WHITE_AREA = 50  # pixels; the LUAD rule ignores smaller areas
# Gray values on either side of the LUAD rule's threshold of 200.
DARKEST_WHITE, LIGHTEST_TISSUE = 210, 190
FINE = 2  # shapes are drawn this many times larger: OpenCV draws a circle of 2 pixels as a square
SUBPIXEL = 4  # fractional bits of the coordinates given to OpenCV

Stains = tuple[np.ndarray, np.ndarray]


def draw_patch(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one patch with one to three tissues, in a third of the cases with white background.

    Args:
      rng: source of all random values.
      size: side in pixels, 64 or more to show the textures well; they do not grow with it.

    Returns:
      image: (size, size, 3) uint8 RGB; gray value above 200 exactly where the mask is white.
      mask: (size, size) uint8 of 0..4 (`DATASET`).
    """
    mask = _draw_regions(rng, size)
    hematoxylin = np.zeros((size, size), np.float32)
    eosin = np.zeros((size, size), np.float32)
    for tissue, texture in enumerate(
        (_draw_tumor, _draw_necrosis, _draw_lymphocytes, _draw_stroma)
    ):
        region = mask == tissue
        if not region.any():
            continue
        stains = texture(rng, region)
        targets = (rng.uniform(0.28, 0.55), rng.uniform(0.22, 0.48))
        for total, stain, target, tint in zip((hematoxylin, eosin), stains, targets, TINT[tissue]):
            total[region] = (stain * ((target + tint) / stain[region].mean()))[region]
    return _stain(rng, hematoxylin, eosin, mask), mask


def write_dataset(
    root: str | Path,
    counts: Mapping[str, int],
    size: int,
    seed: int,
    *,
    workers: int = 1,
    train_masks: bool = False,
) -> Dataset:
    """Draws a data set in the layout of LUAD-HistoSeg: `train`, `val/img`, `val/mask`, `test/...`.

    Every patch depends on (seed, split, number) alone, not on the number of workers or patches.

    Args:
      root: folder to make; it must be new or empty, and is then complete or absent.
      counts: patches per split ("train", "val", "test"); other splits are not written.
      size: side of a patch in pixels.
      seed: of all random values.
      workers: processes.
      train_masks: writes those of the training patches, too, as `train/mask`.

    Returns:
      The description, also written to `<root>/dataset.json`.

    Raises:
      InputError: `root` is not empty.
    """
    root = Path(root)
    with atomic_folder(root) as temporary:
        tasks = [
            _Task(temporary, split, number, size, seed, with_mask=split != "train" or train_masks)
            for split, count in counts.items()
            for number in range(count)
        ]
        for split in counts:
            for part in [""] if split == "train" else ["img"]:
                (temporary / split / part).mkdir(parents=True)
            if split != "train" or train_masks:
                (temporary / split / "mask").mkdir()
        if workers > 1:
            with worker_processes.open_pool(workers) as pool:
                list(pool.map(_write_patch, tasks, chunksize=32))
        else:
            for task in tasks:
                _write_patch(task)
        save_dataset(DATASET, temporary / "dataset.json")
    return DATASET


class _Task(NamedTuple):
    """A patch to draw into the data set `root`."""

    root: Path
    split: str
    number: int
    size: int
    seed: int
    with_mask: bool


def _write_patch(task: _Task) -> None:
    folder = task.root / task.split
    split_key = ("train", "val", "test").index(task.split)
    image, mask = draw_patch(np.random.default_rng([task.seed, split_key, task.number]), task.size)
    stem = f"{task.split}_{task.number:05d}"
    if task.split == "train":
        stem += format_label(derive_label(mask, DATASET), DATASET)
        write_image(folder / f"{stem}.png", image)
    else:
        write_image(folder / "img" / f"{stem}.png", image)
    if task.with_mask:
        write_mask(folder / "mask" / f"{stem}.png", mask, DATASET)


def _draw_regions(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws which tissue is where, (S, S) uint8: smooth outlines, areas of the same order."""
    count = 1 + rng.choice(3, p=TISSUE_COUNTS)
    tissues = rng.permutation(4)[:count].astype(np.uint8)
    fields = np.stack([_draw_noise(rng, size, size / 2.5) for _ in tissues])
    mask = tissues[np.argmax(fields, axis=0)]
    if rng.random() < WHITE_SHARE:
        field = _draw_noise(rng, size, size / 3)
        white = (field > np.quantile(field, rng.uniform(0.7, 0.9))).astype(np.uint8)
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(white, connectivity=4)
        large = stats[:, cv2.CC_STAT_AREA] >= MIN_WHITE_AREA
        large[0] = False
        mask[large[pieces]] = DATASET.excluded
    return mask


def _draw_tumor(rng: np.random.Generator, region: np.ndarray) -> Stains:
    """Draws crowded large nuclei, uneven in size and outline: dark rim, pale inside, nucleolus."""
    size = len(region)
    nuclei = _make_canvas(size)
    centers = _scatter_points(rng, region, spacing=11.5, jitter=0.2)
    radii = rng.uniform(3.6, 5.4, (len(centers), 2))
    for center, axes, angle in zip(centers, radii, rng.uniform(0, 180, len(centers))):
        _draw_ellipse(nuclei, center, axes, angle, 235)
        _draw_ellipse(nuclei, center, axes - 1.3, angle, 105)
        _draw_ellipse(nuclei, center + rng.uniform(-1, 1, 2), (1.0, 1.0), 0, 255)
    nuclei = _warp(rng, _shrink_canvas(nuclei), scale=7, shift=1.0)
    chromatin = 1 + 0.12 * _draw_noise(rng, size, 2)
    cytoplasm = 1 + 0.15 * _draw_noise(rng, size, 6)
    return 0.1 + nuclei * chromatin, (1 - 0.55 * nuclei) * cytoplasm


def _draw_lymphocytes(rng: np.random.Generator, region: np.ndarray) -> Stains:
    """Draws packed small round nuclei, solid and dark, with hardly any cytoplasm."""
    size = len(region)
    nuclei = _make_canvas(size)
    centers = _scatter_points(rng, region, spacing=6.6, jitter=0.2)
    radii = rng.uniform(2.1, 2.7, (len(centers), 1)) * rng.uniform(0.92, 1.08, (len(centers), 2))
    shades = rng.integers(190, 256, len(centers))
    for center, axes, shade in zip(centers, radii, shades):
        _draw_ellipse(nuclei, center, axes, 0, int(shade))
    nuclei = _shrink_canvas(nuclei)
    return 0.08 + nuclei, (1 - 0.5 * nuclei) * (1 + 0.15 * _draw_noise(rng, size, 5))


def _draw_stroma(rng: np.random.Generator, region: np.ndarray) -> Stains:
    """Draws wavy collagen fibers side by side, with thin nuclei along them."""
    size = len(region)
    angle = rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    across = columns * np.float32(np.cos(angle)) + rows * np.float32(np.sin(angle))
    across += 4.5 * _draw_noise(rng, size, 22)
    phase = across * np.float32(2 * np.pi / rng.uniform(5.0, 6.5)) + 0.6 * _draw_noise(rng, size, 8)
    fibers = (0.5 + 0.5 * np.sin(phase)) * (1 + 0.2 * _draw_noise(rng, size, 9))
    nuclei = _make_canvas(size)
    centers = _scatter_points(rng, region, spacing=14, jitter=0.35)
    down, right = np.gradient(across)
    for center in centers:
        column, row = np.clip(center.astype(int), 0, size - 1)
        along = np.degrees(np.arctan2(right[row, column], -down[row, column]))
        _draw_ellipse(nuclei, center, (rng.uniform(5, 7.5), rng.uniform(1.0, 1.5)), along, 255)
    nuclei = _shrink_canvas(nuclei)
    return 0.14 + 0.22 * fibers + nuclei, 0.35 + 0.9 * fibers * (1 - 0.6 * nuclei)


def _draw_necrosis(rng: np.random.Generator, region: np.ndarray) -> Stains:
    """Draws smudged debris: clouds without structure, ghosts of cells, dust of broken nuclei."""
    size = len(region)
    ghosts = _make_canvas(size)
    for center in _scatter_points(rng, region, spacing=13, jitter=0.3):
        _draw_ellipse(
            ghosts, center, rng.uniform(3.5, 5.5, 2), rng.uniform(0, 180), 255, thickness=3
        )
    ghosts = cv2.GaussianBlur(_shrink_canvas(ghosts), (0, 0), 1.0)
    dust = _make_canvas(size)
    grains = _scatter_points(rng, region, spacing=4.5, jitter=0.5)
    grains = grains[rng.random(len(grains)) < 0.5]
    for center, radius in zip(grains, rng.uniform(0.5, 1.1, len(grains))):
        _draw_ellipse(dust, center, (radius, radius), 0, 255)
    dust = _shrink_canvas(dust)
    clouds = np.clip(
        1 + 0.3 * _draw_noise(rng, size, 12) + 0.12 * _draw_noise(rng, size, 4), 0.3, None
    )
    return 0.4 * clouds + 0.25 * ghosts + 0.9 * dust, clouds + 0.6 * ghosts


def _stain(
    rng: np.random.Generator, hematoxylin: np.ndarray, eosin: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Turns stain amounts (S, S) into (S, S, 3) uint8 RGB, with hues and lamp of this patch."""
    vectors = np.stack([HEMATOXYLIN, EOSIN]) + rng.normal(0, 0.05, (2, 3)).astype(np.float32)
    amounts = np.stack([hematoxylin, eosin], axis=-1) * rng.uniform(0.85, 1.2)
    light = rng.uniform(232, 250, 3).astype(np.float32)
    sharp = light * np.exp(-(amounts @ np.clip(vectors, 0.02, None)))
    image: np.ndarray = cv2.GaussianBlur(sharp.astype(np.float32), (0, 0), 0.55)
    image += rng.standard_normal((*mask.shape, 3), np.float32) * np.float32(3)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    white = mask == DATASET.excluded
    bound = np.where(white, np.maximum(gray, DARKEST_WHITE), np.minimum(gray, LIGHTEST_TISSUE))
    image *= (bound / np.maximum(gray, 1))[..., None]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _draw_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Draws smooth noise, (S, S) float32, of about unit deviation, bumps `scale` pixels apart."""
    grid = rng.standard_normal((int(size / scale) + 4,) * 2, np.float32)
    wide = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    start = (len(wide) - size) // 2
    return wide[start : start + size, start : start + size]


def _scatter_points(
    rng: np.random.Generator, region: np.ndarray, spacing: float, jitter: float
) -> np.ndarray:
    """Draws points, (N, 2) x, y, in a region: a hexagonal grid, turned, moved by `jitter`."""
    size = len(region)
    reach = int(size / spacing) + 2
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    points = np.stack([columns + 0.5 * (rows % 2), rows * np.sqrt(0.75)], axis=1)
    points += rng.uniform(-jitter, jitter, points.shape)
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = points @ turn * spacing + size / 2
    pixels = np.rint(points).astype(int)
    on_patch = ((pixels >= 0) & (pixels < size)).all(axis=1)
    points, pixels = points[on_patch], pixels[on_patch]
    return points[region[pixels[:, 1], pixels[:, 0]]]


def _make_canvas(size: int) -> np.ndarray:
    """Makes an empty uint8 canvas for `_draw_ellipse`, `FINE` times as wide as the patch."""
    return np.zeros((FINE * size, FINE * size), np.uint8)


def _shrink_canvas(canvas: np.ndarray) -> np.ndarray:
    """Shrinks a canvas to the size of the patch, (S, S) float32 of 0..1."""
    size = len(canvas) // FINE
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA) / np.float32(255)


def _draw_ellipse(
    canvas: np.ndarray,
    center: np.ndarray,
    axes: tuple[float, float] | np.ndarray,
    angle: float,
    value: int,
    thickness: int = cv2.FILLED,
) -> None:
    """Draws an ellipse on a canvas; center (x, y) and half axes are in pixels of the patch."""
    factor = FINE << SUBPIXEL
    at = (round(center[0] * factor), round(center[1] * factor))
    half = (max(round(axes[0] * factor), 1), max(round(axes[1] * factor), 1))
    cv2.ellipse(canvas, at, half, angle, 0, 360, value, thickness, cv2.LINE_AA, SUBPIXEL)


def _warp(rng: np.random.Generator, layer: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """Moves every pixel of a layer by smooth noise of `shift` pixels, so that outlines wobble."""
    size = len(layer)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    columns += shift * _draw_noise(rng, size, scale)
    rows += shift * _draw_noise(rng, size, scale)
    return cv2.remap(layer, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
