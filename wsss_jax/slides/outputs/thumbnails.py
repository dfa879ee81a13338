"""The picture of a whole slide that maps are drawn on, and which pixels of a map belong to it."""

from pathlib import Path

import cv2
import numpy as np

from data.pictures import open_picture
from wsss_jax.report import slide_pictures
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.regions import ReadRows


def shrink_overview(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrinks the overview of a slide until its longer side has `longest` pixels; uint8 RGB."""
    height, width = image.shape[:2]
    shrink = max(1.0, max(width, height) / longest)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def read_thumbnail(folder: Path) -> np.ndarray:
    """Reads the thumbnail in a folder of results; (h, w, 3) uint8 RGB.

    Raises:
      InputError: it is missing or damaged.
    """
    with open_picture(folder / slide_pictures.THUMBNAIL, ("PNG",)) as picture:
        return np.asarray(picture.convert("RGB"))


def find_map_pixels(thumbnail: np.ndarray, frame: MapFrame) -> tuple[np.ndarray, np.ndarray]:
    """Finds the row of the map in the middle of each of the thumbnail's, and likewise columns.

    Returns:
      (h,) and (w,) int, ascending.
    """
    height, width = thumbnail.shape[:2]
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n)
        for n, size in ((height, frame.height), (width, frame.width))
    )
    return rows, columns


def sample_labels(read_rows: ReadRows, thumbnail: np.ndarray, frame: MapFrame) -> np.ndarray:
    """Reads the labels that belong to the pixels of a thumbnail; (h, w) uint8."""
    rows, columns = find_map_pixels(thumbnail, frame)
    return np.stack([read_rows(y, y + 1, 1)[0, columns] for y in rows.tolist()])


def measure_pixel(thumbnail: np.ndarray, frame: MapFrame) -> float:
    """Measures the side of a pixel of the thumbnail, in micrometers."""
    return frame.mpp * max(frame.width, frame.height) / max(thumbnail.shape[:2])
