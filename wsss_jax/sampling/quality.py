"""Measures of the quality of H&E patches, without trained weights.

Each measure is a function of (N, H, W, 3) uint8 RGB patches that returns (N,) float64. They are
made for 1 micrometer per pixel, and their distances are in pixels: `measure_patches` reduces finer
patches to it, since a sharp slide looks sharper the coarser it is read.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

# Gray value above which a pixel is glass. HistoQC (Janowczyk et al. 2019) takes 210 for bright.
_WHITE = 220
_MPP = 1.0  # micrometers per pixel that finer patches are reduced to
_DARK = 60  # gray value; HistoQC's folds and dirt are at most .15 of 255, before smoothing
_GLASS = 245  # gray value of glass, whose optical density is 0
_SMOOTHING = 2.0  # standard deviation in pixels: colors of areas, not of single pixels
_PALE = 0.06  # optical density; what is paler is not counted as stained
_PALE_QUARTER = 25  # percentile
_ROUNDING = 0.5  # variance of second differences of numbers that were rounded: 6 / 12
_LEAST_VARIANCE = 0.1  # squared gray values; by it, flat patches have a sharpness, 0
_THUMBNAIL = 16  # pixels, side
_BLOCK = 256  # rows of distances computed at a time
FARTHEST = 255.0  # gray values, see `measure_nearest`
# Optical density of each 8-bit value; brighter than glass counts as glass.
_DENSITIES = np.maximum(-np.log10(np.arange(256).clip(1) / _GLASS), 0).astype(np.float32)


def measure_white(patches: np.ndarray) -> np.ndarray:
    """Measures the share of pixels that are glass: gray value (ITU-R BT.601) over 220."""
    return _map(lambda patch: np.mean(_to_gray(patch) > _WHITE), patches)


def measure_tissue(patches: np.ndarray) -> np.ndarray:
    """Measures the share of pixels with the colors of H&E.

    Hematoxylin and eosin both absorb green most (Ruifrok and Johnston 2001); glass, also gray one,
    and ink do not.
    """
    return measure_areas(patches)["tissue"]


def measure_pen(patches: np.ndarray) -> np.ndarray:
    """Measures the share of pixels with colors that H&E cannot have: ink, and dust.

    Green and blue ink absorb more red than green, red and black ink nearly as much blue as green;
    the stains absorb green most (vectors of Ruifrok and Johnston 2001). Not for other stains.
    """
    return measure_areas(patches)["pen"]


def measure_dark(patches: np.ndarray) -> np.ndarray:
    """Measures the share of pixels that are dark over some micrometers: dirt, thick folds.

    Their gray value is below 60 after smoothing (as HistoQC, Janowczyk et al. 2019), which leaves
    out single nuclei.
    """
    return measure_areas(patches)["dark"]


def measure_areas(patches: np.ndarray) -> dict[str, np.ndarray]:
    """Measures the shares of `measure_tissue`, `measure_pen` and `measure_dark` at once."""

    def measure(patch: np.ndarray) -> tuple[Any, Any, Any]:
        smooth = cv2.GaussianBlur(patch, (0, 0), _SMOOTHING)
        red, green, blue = (_DENSITIES[channel] for channel in cv2.split(smooth))
        green_or_blue = (red > 0.12) & (red > 1.05 * green)
        red_or_black = (green > 0.25) & (blue > 0.75 * green)
        ink = green_or_blue | red_or_black
        stained = green - np.minimum(red, blue) > 0.04
        return np.mean(stained & ~ink), np.mean(ink), np.mean(_to_gray(smooth) < _DARK)

    return dict(zip(("tissue", "pen", "dark"), _map(measure, patches).T, strict=True))


def measure_sharpness(patches: np.ndarray) -> np.ndarray:
    """Measures how much detail another blur would take away; the blurrier of both axes counts.

    The logarithm (base 10) of the variance of the second differences over that of the patch blurred
    by a Gaussian of 1.5 pixels. The idea of blurring again is that of Crete et al. 2007: it makes
    the measure independent of contrast and content, while the variance of the Laplacian
    (Pech-Pacheco et al. 2000) also calls smooth stroma blurred. Motion blurs one axis more.
    """

    def measure(patch: np.ndarray) -> Any:
        gray = _to_gray(patch).astype(np.float32)
        again = cv2.GaussianBlur(gray, (0, 0), 1.5)
        kernel = np.array([[-1, 2, -1]], np.float32)
        return min(
            np.log10(
                (max(cv2.filter2D(gray, -1, k).var() - _ROUNDING, 0) + _LEAST_VARIANCE)
                / (cv2.filter2D(again, -1, k).var() + _LEAST_VARIANCE)
            )
            for k in (kernel, kernel.T)
        )

    return _map(measure, patches)


def measure_stain(patches: np.ndarray) -> np.ndarray:
    """Measures the optical density (mean of R, G, B) of the palest quarter of the tissue.

    It is the 25th percentile of pixels over .06; nan where they are under 2 % of the patch. Too
    much stain colors all of the tissue, while in dense tissue, such as lymphocytes, some of it
    stays pale: a mean (of hematoxylin, by fixed vectors) would drop the dense tissue first.
    """

    def measure(patch: np.ndarray) -> Any:
        pixels = _DENSITIES[patch[::2, ::2]].mean(axis=-1)  # enough for a percentile
        stained = pixels[pixels > _PALE]
        if stained.size < 0.02 * pixels.size:
            return np.nan
        return np.percentile(stained, _PALE_QUARTER)

    return _map(measure, patches)


# Column of the table -> measure of the pixels of a patch alone.
MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "white": measure_white,
    "tissue": measure_tissue,
    "pen": measure_pen,
    "dark": measure_dark,
    "sharpness": measure_sharpness,
    "stain": measure_stain,
}


def measure_patches(patches: np.ndarray, mpp: float) -> dict[str, np.ndarray]:
    """Measures patches of `mpp` micrometers per pixel, all of `MEASURES`; column -> (N,) float64.

    Patches that are coarser than 1 micrometer per pixel are measured as they are.
    """
    if mpp < _MPP:
        height, width = (max(1, round(side * mpp / _MPP)) for side in patches.shape[1:3])
        patches = np.stack(
            [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in patches]
        )
    areas = measure_areas(patches)  # at once: smoothing takes the most time
    return {
        column: areas[column] if column in areas else measure(patches)
        for column, measure in MEASURES.items()
    }


def make_thumbnails(patches: np.ndarray) -> np.ndarray:
    """Reduces patches to (N, 16, 16, 3) uint8, by which duplicates are found."""
    side = (_THUMBNAIL, _THUMBNAIL)
    return np.stack([cv2.resize(patch, side, interpolation=cv2.INTER_AREA) for patch in patches])


def measure_nearest(thumbnails: np.ndarray) -> np.ndarray:
    """Measures how little each patch differs from the most similar patch before it.

    Args:
      thumbnails: (N, h, w, 3) uint8, from `make_thumbnails`.

    Returns:
      (N,) float64: the root mean square difference in gray values; 255 for the first patch.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32) - 128
    squares = np.einsum("ij,ij->i", flat, flat, dtype=np.float64)
    nearest = np.full(len(flat), FARTHEST)
    for start in range(0, len(flat), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(flat)))
        products = (flat[rows] @ flat[: rows[-1] + 1].T).astype(np.float64)
        means = (squares[rows, None] + squares[None, : rows[-1] + 1] - 2 * products) / flat.shape[1]
        means[np.arange(rows[-1] + 1) >= rows[:, None]] = FARTHEST**2  # itself, and later ones
        nearest[rows] = np.sqrt(means.clip(0).min(axis=1))
    return nearest


def _map(measure: Callable[[np.ndarray], Any], patches: np.ndarray) -> np.ndarray:
    return np.array([measure(patch) for patch in patches], np.float64)


def _to_gray(patch: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
